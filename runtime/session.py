"""A session: one stream over an engine directory. Open, prepare, step, close."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sdrt.runtime.chunk import Chunk
from sdrt.runtime.directory.checks import verify_files
from sdrt.runtime.directory.manifest import Manifest, read_manifest
from sdrt.runtime.directory.tensors import allocate_buffers, load_weights
from sdrt.runtime.directory.variants import choose_variant
from sdrt.runtime.flow import FLOWS, noise_filler
from sdrt.runtime.host_frames import HOST_SLOTS, HostFrames
from sdrt.runtime.measure import profiler
from sdrt.runtime.measure.memory import memory_gib
from sdrt.runtime.measure.timing import Clock, make_clock
from sdrt.runtime.programs.aoti import Program, load_programs
from sdrt.runtime.programs.tensorrt import keep_compiled
from sdrt.runtime.stage import Stage, StageTable
from sdrt.runtime.streams import Lanes
from sdrt.runtime.text.prompts import Prompts

IN_FLIGHT = 2
"""AR steps that may be submitted before the first of them is received."""


class SessionError(ValueError):
    """The session was used in a way it cannot serve; the message says what was expected."""


class Session:
    """Runs the stages of an engine directory over one stream's states.

    Weights and states are allocated once, every stage is warmed up and (on CUDA) captured when
    the session opens; after that an AR step replays graphs and updates indices on the device.
    """

    def __init__(
        self,
        manifest: Manifest,
        programs: Mapping[str, Program],
        weights: Mapping[str, Tensor],
        device: torch.device,
        directory: Path | None = None,
        capture: bool = True,
        overlap: bool = True,
    ) -> None:
        """Bind programs and weights; :meth:`open` does this from an engine directory.

        Args:
            directory: holds the text encoder's files, where the preset needs one.
            capture: record CUDA graphs; without, packages are called one by one.
            overlap: as :meth:`open` takes it.
        """
        self.manifest, self.device = manifest, device
        dit = manifest.preset["dit"]
        sizes = (dit["text_len"], dit["text_dim"])
        self.prompts = Prompts(manifest.text, *sizes, directory, device)
        self.weights = weights
        self.buffers = allocate_buffers(manifest, device)
        # Plans share the memory of their activations, so they must not run beside each other.
        plans = any(package.engine for package in manifest.packages.values())
        self._lanes = Lanes(device, overlap and not plans)
        stages = [
            Stage(spec, manifest, programs, self.buffers, weights) for spec in manifest.stages
        ]
        self.stages = StageTable(stages)
        if device.type == "cuda" and capture:
            self.stages.capture(self._lanes)
        self._generator = torch.Generator(device)
        flow = FLOWS[manifest.preset["flow"]]
        self.flow = flow(
            manifest.preset,
            self.stages,
            self.buffers,
            weights,
            noise_filler(self.buffers, self._generator),
        )
        self.host = HostFrames(manifest, self.buffers, device)
        self._clocks: list[Clock] = [make_clock(device) for _ in range(HOST_SLOTS)]
        self._index = self._received = 0
        self._pending: dict[int, tuple[str | None, float]] = {}
        self._prepared = self._closed = False
        profiler.attach_if_wanted(self)

    @classmethod
    def open(cls, directory: Path | str, device: str | None = None, overlap: bool = True) -> Self:
        """Load an engine directory and make it ready to stream.

        Args:
            device: ``cuda``, ``cuda:1`` or ``cpu``; by default what the engine was built for.
            overlap: on a GPU, encode, denoise and decode different chunks at once; without, it
                is a little slower and needs less memory. TensorRT plans never do.
        Raises:
            ManifestError: the directory is damaged, or built for another machine.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        target, manifest = choose_variant(directory, manifest, device)
        with profiler.span("load"), torch.inference_mode(), verify_files(directory, manifest):
            weights = load_weights(directory, manifest, target)
            programs = load_programs(directory, manifest, target)
        with torch.inference_mode():
            session = cls(manifest, programs, weights, target, directory, overlap=overlap)
        keep_compiled(programs.values())
        return session

    @property
    def takes_frames(self) -> bool:
        """Whether the stream turns input frames into output frames (else text to video)."""
        return self.flow.chunk_frames > 0

    def chunk_frames(self) -> int:
        """Return how many input frames the next :meth:`submit` takes; 0 for text to video."""
        return self.flow.chunk_frames if self._index else self.flow.first_chunk_frames

    @property
    def lookahead_frames(self) -> int:
        """Input frames that must follow a frame before its output can be made.

        A TAEHV encoder gathers groups of four where its decoder drops the first three frames, so
        its input runs three frames ahead of its output; the Wan VAE's does not.
        """
        if not self.takes_frames:
            return 0
        return self.flow.first_chunk_frames - len(self.buffers["frames_out.first"])

    @torch.inference_mode()
    def prepare(self, prompt: str, seed: int = 0) -> None:
        """Start a stream: encode the prompt, clear every state, seed the noise.

        Raises:
            SessionError: the prompt is empty, or the session closed.
        """
        self.set_prompt(prompt)
        self._lanes.synchronize()
        for name, spec in self.manifest.buffers.items():
            if spec.kind != "prompt":
                self.buffers[name].zero_()
        self._generator.manual_seed(seed)
        self._index = self._received = 0
        self._pending.clear()
        self.flow.start()
        self._lanes.synchronize()
        self._prepared = True

    @torch.inference_mode()
    def set_prompt(self, prompt: str) -> "Future[Tensor]":
        """Change the prompt from the next AR step on; the stream goes on.

        Returns:
            The embedding's future.

        Raises:
            SessionError: the prompt is empty, or the session closed.
        """
        if self._closed:
            raise SessionError("the session is closed: open another one")
        if not prompt.strip():
            raise SessionError("the prompt is empty; give a text, such as --prompt 'neon discs'")
        embeds = self.prompts.submit(prompt)
        with self._lanes.on("prompt"):
            self.buffers["prompt_embeds"].copy_(embeds.result())
            self.stages.run("prompt", "any")
        self._lanes.synchronize()
        return embeds

    @torch.inference_mode()
    def submit(self, frames: np.ndarray | Tensor | None = None) -> None:
        """Start one AR step; on CUDA this returns while the device works.

        Args:
            frames: uint8 ``[F, H, W, 3]`` with F = :meth:`chunk_frames`; None for text to video.
        Raises:
            SessionError: not prepared, two steps in flight already, or frames that do not fit.
        """
        index, slot = self._index, self._index % HOST_SLOTS
        self._check_submit(frames)
        started = time.perf_counter()
        clock, lanes, flow = self._clocks[slot], self._lanes, self.flow
        with lanes.on("encode"):
            lanes.wait("encoded is taken")
            clock.begin("encode_ms")
            if frames is not None:
                self.host.stage_in(
                    slot, frames, self.buffers["frames.steady" if index else "frames.first"]
                )
            flow.encode(index)
            clock.end("encode_ms")
            lanes.record("encoded")
        with lanes.on("diffuse"):
            lanes.wait("encoded")
            lanes.wait("finished is taken")
            flow.take_encoded(index)
            lanes.record("encoded is taken")
            clock.begin("diffuse_ms")
            flow.diffuse(index)
            clock.end("diffuse_ms")
            lanes.record("finished")
        with lanes.on("decode"):
            lanes.wait("finished")
            flow.take_finished(index)
            lanes.record("finished is taken")
            clock.begin("decode_ms")
            output = flow.decode(index)
            if output is not None:
                self.host.stage_out(slot, self.buffers[output])
            clock.end("decode_ms")
        with lanes.on("finalize"):
            clock.begin("finalize_ms")
            flow.finalize(index)
            clock.end("finalize_ms")
        self._pending[index] = (output, started)
        self._index += 1

    def receive(self) -> Chunk:
        """Wait for the oldest submitted AR step and return what it gave.

        Raises:
            SessionError: nothing was submitted.
        """
        index, slot = self._received, self._received % HOST_SLOTS
        if index not in self._pending:
            raise SessionError("nothing to receive: submit a chunk first")
        output, started = self._pending.pop(index)
        clock = self._clocks[slot]
        clock.wait("decode_ms")
        latency_ms = (time.perf_counter() - started) * 1e3
        count = 0 if output is None else len(self.buffers[output])
        before = self._clocks[slot - 1].finalize_ms() if index else 0.0
        self._received += 1
        return Chunk(
            index=index,
            frames=self.host.frames_out[slot][:count],
            stages_ms=clock.read() | {"finalize_ms": before},
            latency_ms=latency_ms,
            steady=self.flow.is_steady(index),
        )

    def step(self, frames: np.ndarray | Tensor | None = None) -> np.ndarray:
        """Run one AR step and return its frames (see :meth:`submit` and :class:`Chunk`)."""
        self.submit(frames)
        return self.receive().frames

    def drain(self) -> Iterator[Chunk]:
        """Yield what is still in the stream: submitted steps, then the rows of the stream batch.

        The stream batch is pushed on with the last frame repeated. A session drains once, at the
        end of a stream.
        """
        while self._pending:
            yield self.receive()
        if not self._index:
            return
        for _ in range(self.flow.drain_steps):
            self.submit(self._last_frames())
            yield self.receive()

    def memory_gib(self) -> dict[str, float]:
        """Return device memory in GiB: allocated, reserved, peak; on a CPU the process's peak."""
        return memory_gib(self.device)

    def close(self) -> None:
        """Wait for the device and free the session's tensors and graphs."""
        self._lanes.synchronize()
        self.prompts.close()
        self._prepared, self._closed = False, True
        self.stages = StageTable([])
        self.buffers, self.weights = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_submit(self, frames: np.ndarray | Tensor | None) -> None:
        if self._closed:
            raise SessionError("the session is closed: open another one")
        if not self._prepared:
            raise SessionError("the session is not prepared: call prepare(prompt) first")
        if len(self._pending) >= IN_FLIGHT:
            raise SessionError(f"{IN_FLIGHT} AR steps are in flight: receive one first")
        expected = self.chunk_frames()
        if frames is None:
            if expected:
                raise SessionError(f"this engine takes {expected} frames here, got none")
            return
        if not expected:
            raise SessionError("this engine makes video from text: it takes no frames")
        shape = (expected, *self.host.picture)
        got = (tuple(frames.shape), str(frames.dtype).removeprefix("torch."))
        if got != (shape, "uint8"):
            raise SessionError(f"frames are {got[0]} {got[1]}, expected {shape} uint8")

    def _last_frames(self) -> Tensor:
        """Return a chunk of the last input frame, repeated."""
        count = self.flow.chunk_frames if self._index > 1 else self.flow.first_chunk_frames
        last = self.host.frame_in((self._index - 1) % HOST_SLOTS, count - 1)
        return last.expand(self.flow.chunk_frames, -1, -1, -1)
