"""A session: one stream over an engine. Prepare, step, close."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from sdrt.kernels.errors import SdrtError
from sdrt.runtime.chunk import Chunk
from sdrt.runtime.directory.order import CONDITION_STREAM
from sdrt.runtime.directory.specs import Ref
from sdrt.runtime.directory.tensors import allocate_buffers
from sdrt.runtime.host_frames import HOST_SLOTS, HostFrames
from sdrt.runtime.measure import profiler
from sdrt.runtime.measure.memory import memory_gib
from sdrt.runtime.measure.timing import Clock, make_clock
from sdrt.runtime.programs.loaders import are_exclusive, keep_compiled
from sdrt.runtime.stage import Stage
from sdrt.runtime.step import Steps

if TYPE_CHECKING:
    from sdrt.runtime.engine import Engine

IN_FLIGHT = 2
"""AR steps that may be submitted before the first of them is received."""


class SessionError(SdrtError):
    """The session was used in a way it cannot serve; the message says what was expected."""


class Session:
    """Runs the AR steps of an engine over one stream's states.

    States are allocated once, every stage is warmed up and (on CUDA) captured when the session
    is made; after that an AR step replays graphs and updates indices on the device.
    """

    def __init__(self, engine: "Engine", overlap: bool = True, capture: bool = True) -> None:
        """Allocate and bind; :meth:`Engine.session` describes the arguments."""
        self.engine, self.manifest, self.device = engine, engine.manifest, engine.device
        self.stream = self.manifest.stream
        self._generator = torch.Generator(self.device)
        with torch.inference_mode():
            self._bind(overlap, capture)
        self.host = HostFrames(self.stream, self.device)
        self._clocks: list[Clock] = [make_clock(self.device) for _ in range(HOST_SLOTS)]
        self._index = self._received = 0
        self._pending: dict[int, tuple[Ref | None, float]] = {}
        self._prompt: Future[Tensor] | None = None
        self._prepared = self._closed = self._owns_engine = False
        self._detach = profiler.attach_if_wanted(self)

    def _bind(self, overlap: bool, capture: bool) -> None:
        """Allocate the buffers, bind stages and steps to them, and capture."""
        engine, manifest = self.engine, self.manifest
        self.buffers = allocate_buffers(manifest, self.device)
        shared = (manifest, engine.programs, self.buffers, engine.weights)
        stages = {spec.name: Stage(spec, *shared) for spec in manifest.stages}
        generator = self._generator
        self.steps = Steps(
            manifest,
            stages,
            self.buffers,
            engine.weights,
            self.device,
            overlap and not are_exclusive(manifest),
            lambda _, tensor: tensor.normal_(generator=generator),
        )
        if self.device.type == "cuda" and capture:
            self.steps.capture()
            keep_compiled(manifest, engine.programs)

    @classmethod
    def open(
        cls,
        directory: Path | str,
        device: str | None = None,
        overlap: bool = True,
        text_encoder: str | None = None,
    ) -> "Session":
        """Load an engine directory for a single stream; closing the session closes the engine.

        The arguments are those of :meth:`Engine.open` and :meth:`Engine.session`.

        Raises:
            ManifestError: the directory is damaged, or built for another machine.
        """
        from sdrt.runtime.engine import Engine

        engine = Engine.open(directory, device, text_encoder)
        session = engine.session(overlap)
        session._owns_engine = True
        return session

    @property
    def takes_frames(self) -> bool:
        """Whether the stream turns input frames into output frames (else text to video)."""
        return self.stream.takes_frames

    def chunk_frames(self) -> int:
        """Return how many input frames the next :meth:`submit` takes; 0 for text to video."""
        return self.stream.frames_in if self._index else self.stream.first_frames_in

    @torch.inference_mode()
    def prepare(self, prompt: str, seed: int = 0) -> None:
        """Start a stream: encode the prompt, clear every state, seed the noise.

        Raises:
            SessionError: the prompt is empty, or the session closed.
            TextEncoderError: the prompt cannot be encoded.
        """
        self._check_prompt(prompt)
        embeds = self.engine.prompts.encode(prompt)
        self.steps.streams.synchronize()
        with self.steps.streams.on(CONDITION_STREAM):  # the prompt's stage follows there
            for name, spec in self.manifest.buffers.items():
                if spec.kind != "prompt":
                    self.buffers[name].zero_()
        self._generator.manual_seed(seed)
        self._index = self._received = 0
        self._pending.clear()
        self._prompt = None
        self.steps.set_condition("prompt", embeds)
        self.steps.streams.synchronize()
        self._prepared = True

    def set_prompt(self, prompt: str) -> "Future[Tensor]":
        """Change the prompt while the stream goes on; frames in flight do not wait for it.

        The prompt is encoded beside the stream, and holds from the next :meth:`submit` on after
        that. What is known at once, as hashed words are, holds from the next one on.

        Returns:
            A future: its ``result()`` waits until the prompt is encoded, and raises
            ``TextEncoderError`` where it cannot be. The stream then keeps its prompt.
        Raises:
            SessionError: the prompt is empty, or the session closed.
        """
        self._check_prompt(prompt)
        self._prompt = encoded = self.engine.prompts.submit(prompt)
        if self.engine.prompts.instant:
            encoded.exception()  # waits, so that the same calls give the same frames
        return encoded

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
        step, clock = self.steps.at(index), self._clocks[slot]
        self._take_prompt()
        clock.start()
        for track in step.tracks:
            track.run(
                clock,
                lambda target: self._stage_in(slot, frames, target),
                lambda source: self.host.stage_out(slot, self.buffers[source.name]),
            )
        self._pending[index] = (step.spec.gives, started)
        self._index += 1

    def receive(self) -> Chunk:
        """Wait for the oldest submitted AR step and return what it gave.

        Raises:
            SessionError: nothing was submitted.
        """
        index, slot = self._received, self._received % HOST_SLOTS
        if index not in self._pending:
            raise SessionError("nothing to receive: submit a chunk first")
        gives, started = self._pending.pop(index)
        clock = self._clocks[slot]
        clock.wait()
        latency_ms = (time.perf_counter() - started) * 1e3
        count = 0 if gives is None else len(self.buffers[gives.name])
        before = self._clocks[slot - 1].finalize_ms() if index else 0.0
        self._received += 1
        return Chunk(
            index=index,
            frames=self.host.frames_out[slot][:count],
            stages_ms=clock.read() | {"finalize_ms": before},
            latency_ms=latency_ms,
            steady=self.steps.at(index).spec.phase == "steady",
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
        self._check_open()
        while self._pending:
            yield self.receive()
        if not self._index:
            return
        for _ in range(self.stream.drain_steps):
            self.submit(self._last_frames())
            yield self.receive()

    def prompt_embeds(self) -> Tensor:
        """Return the embedding of the prompt that holds, float32 ``[1, text_len, text_dim]``."""
        value, _ = self.steps.conditions["prompt"]
        return value

    def memory_gib(self) -> dict[str, float]:
        """Return device memory in GiB: allocated, reserved, peak; on a CPU the process's peak."""
        return memory_gib(self.device)

    def close(self) -> None:
        """Wait for the device and free the session's tensors and graphs."""
        if self._closed:
            return
        self.steps.streams.synchronize()
        self._prepared, self._closed = False, True
        self._pending.clear()
        self._detach()
        self.steps.close()
        if self._owns_engine:
            self.engine.close()
        del self.steps, self.host, self._clocks, self._generator, self.engine
        self.buffers, self._prompt = {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_prompt(self) -> None:
        """Let a prompt that is encoded by now hold from this AR step on."""
        prompt = self._prompt
        if prompt is None or not prompt.done():
            return
        self._prompt = None
        if not prompt.cancelled() and prompt.exception() is None:
            self.steps.set_condition("prompt", prompt.result())

    def _check_prompt(self, prompt: str) -> None:
        self._check_open()
        if not prompt.strip():
            raise SessionError("the prompt is empty; give a text, such as --prompt 'neon discs'")

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError("the session is closed: open another one")

    def _check_submit(self, frames: np.ndarray | Tensor | None) -> None:
        self._check_open()
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

    def _stage_in(self, slot: int, frames: np.ndarray | Tensor | None, target: Ref) -> None:
        assert frames is not None, "a step that takes frames was given none"
        self.host.stage_in(slot, frames, self.buffers[target.name])

    def _last_frames(self) -> Tensor:
        """Return a chunk of the last input frame, repeated."""
        stream = self.stream
        count = stream.frames_in if self._index > 1 else stream.first_frames_in
        last = self.host.frame_in((self._index - 1) % HOST_SLOTS, count - 1)
        return last.expand(stream.frames_in, -1, -1, -1)
