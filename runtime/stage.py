"""A stage at run time: bound calls, captured as one CUDA graph and replayed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdrt.runtime.directory.manifest import Manifest, StageSpec
from sdrt.runtime.directory.tensors import bind, check_arguments
from sdrt.runtime.measure import profiler
from sdrt.runtime.programs.program import Program
from sdrt.runtime.streams import Lanes

WARM_UP_RUNS = 2


class Stage:
    """The calls of one stage over a session's tensors."""

    def __init__(
        self,
        spec: StageSpec,
        manifest: Manifest,
        programs: Mapping[str, Program],
        buffers: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> None:
        """Bind every argument and check it against the packages' declarations."""
        self.spec = spec
        self._calls: list[tuple[Program, list[Tensor]]] = []
        for call in spec.calls:
            arguments = bind(call, buffers, weights)
            check_arguments(call.package, manifest.packages[call.package].arguments, arguments)
            self._calls.append((programs[call.package], arguments))
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def captured(self) -> bool:
        """Whether the stage is replayed as a graph."""
        return self._graph is not None

    def run(self) -> None:
        """Run on the current stream: replay where captured, else call after call."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self.run_direct()

    def run_direct(self) -> None:
        """Run the packages themselves, without a graph."""
        for program, arguments in self._calls:
            program.run(arguments)

    def capture(self, stream: torch.cuda.Stream, pool: Any) -> None:
        """Warm up and capture on ``stream``; the states are left changed.

        Kernels load, and libraries make their plans, at the first launches: they must not fall
        into the capture. Graphs of one stream share a pool, since they never run at once and
        nothing in the pool outlives a replay.
        """
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self.run_direct()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.run_direct()
        with torch.cuda.stream(stream):
            graph.replay()
        stream.synchronize()
        self._graph = graph


class StageTable:
    """All stages of a session, found by group and phase."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self._groups: dict[tuple[str, str], list[Stage]] = {}
        for stage in stages:
            self._groups.setdefault((stage.spec.group, stage.spec.phase), []).append(stage)

    def run(self, group: str, phase: str) -> None:
        """Run a group's stages of one phase, in order (the ranges of the DiT, say)."""
        for stage in self._groups[group, phase]:
            stage.run()

    def has(self, group: str) -> bool:
        """Return whether the engine has stages of a group."""
        return any(known == group for known, _ in self._groups)

    def capture(self, lanes: Lanes) -> None:
        """Capture every stage of the AR step; the prompt's runs once per prompt, uncaptured."""
        pools: dict[torch.cuda.Stream | None, Any] = {}
        for stage in self.stages:
            if stage.spec.group != "prompt":
                stream = lanes.stream(stage.spec.group)
                assert stream is not None, "only CUDA stages are captured"
                pool = pools.setdefault(stream, torch.cuda.graph_pool_handle())
                with profiler.span(f"capture {stage.spec.name} {stage.spec.phase}"):
                    stage.capture(stream, pool)
