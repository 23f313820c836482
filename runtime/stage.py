"""A stage at run time: bound calls, captured as one CUDA graph and replayed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdrt.runtime.directory.manifest import Manifest
from sdrt.runtime.directory.specs import StageSpec
from sdrt.runtime.directory.tensors import check_arguments, resolve
from sdrt.runtime.programs.program import Program

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
        """Bind every argument and check it against the packages' declarations.

        Packages take raw addresses, so everything that they would accept in silence is checked
        once, here.
        """
        self.spec = spec
        self._calls: list[tuple[Program, list[Tensor]]] = []
        for call in spec.calls:
            arguments = [resolve(ref, buffers, weights) for ref in call.arguments]
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
