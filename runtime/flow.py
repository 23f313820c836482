"""The two ways through an AR step: stream batch (video to video) and rollout (text to video)."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from sdrt.runtime.stage import StageTable


class Flow(Protocol):
    """What a session asks of a flow; ``index`` counts the AR steps of a stream from 0."""

    first_chunk_frames: int
    chunk_frames: int
    """Input frames of the first and of every later chunk; 0 for text to video."""
    drain_steps: int
    """AR steps after the last input until its chunk comes out."""

    def start(self) -> None: ...
    def encode(self, index: int) -> None: ...
    def take_encoded(self, index: int) -> None:
        """Copy what the encoder made to where the DiT reads it; the encoder may then go on."""
        ...

    def diffuse(self, index: int) -> None: ...
    def take_finished(self, index: int) -> None:
        """Copy what the DiT made to where the decoder reads it; the DiT may then go on."""
        ...

    def decode(self, index: int) -> str | None:
        """Decode; return the buffer that holds the finished frames, if a chunk finished."""
        ...

    def finalize(self, index: int) -> None: ...
    def is_steady(self, index: int) -> bool: ...


class _Base:
    def __init__(
        self,
        preset: Mapping[str, Any],
        stages: StageTable,
        buffers: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        fill_noise: Callable[[str], None],
    ) -> None:
        """Bind a flow to a session.

        Args:
            fill_noise: fills the named buffer with standard normal noise.
        """
        stream = preset["stream"]
        self.window, self.frames = stream["window_frames"], stream["chunk_latent_frames"]
        self.stages, self.buffers, self.fill_noise = stages, buffers, fill_noise
        self.timesteps = weights["schedule.timesteps"]
        self.next_sigmas = weights["schedule.next_sigmas"]
        self.steps = self.timesteps.shape[0]

    def _denoise(self, phase: str, suffix: str = "") -> None:
        """Run all denoise steps of one chunk, one after another, from ``noisy`` to ``latent``."""
        noisy, latent = self.buffers[f"noisy{suffix}"], self.buffers[f"latent{suffix}"]
        timestep, sigma = self.buffers[f"timestep{suffix}"], self.buffers[f"next_sigma{suffix}"]
        for step in range(self.steps):
            if step:
                noisy.copy_(latent)
            timestep.copy_(self.timesteps[step : step + 1])
            sigma.copy_(self.next_sigmas[step : step + 1])
            self.fill_noise(f"renoise{suffix}")
            self.stages.run("diffuse", phase)


class StreamBatch(_Base):
    """StreamDiffusionV2: row i of the batch holds the chunk that is at denoise step i."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.first_chunk_frames = self.buffers["frames.first"].shape[0]
        self.chunk_frames = self.buffers["frames.steady"].shape[0]
        self.drain_steps = self.steps - 1
        self._rings = [
            tensor.view(self.steps, -1)
            for name, tensor in self.buffers.items()
            if name.startswith("ring.") and name.endswith((".k", ".v"))
        ]

    def start(self) -> None:
        """Nothing to do: the states are zeros, and the first chunk sets the rows."""

    def encode(self, index: int) -> None:
        phase = "first" if index == 0 else "steady"
        self.fill_noise(f"noise.{phase}")
        self.stages.run("encode", phase)

    def take_encoded(self, index: int) -> None:
        if index:
            self.buffers["noisy.steady"].copy_(self.buffers["encoded.noisy"])
            self.buffers["timestep"].copy_(self.buffers["encoded.timestep"])

    def diffuse(self, index: int) -> None:
        if index == 0:
            self._denoise("first", ".first")
            self._seed_rows()
            return
        self.fill_noise("renoise.steady")
        self.stages.run("diffuse", "steady" if self.is_steady(index) else "filling")
        self.buffers["frame"].add_(self.frames)

    def take_finished(self, index: int) -> None:
        if index >= self.steps:
            self.buffers["finished.steady"].copy_(self.buffers["latent.steady"][-1:])

    def decode(self, index: int) -> str | None:
        if 0 < index < self.steps:
            return None
        phase = "first" if index == 0 else "steady"
        self.stages.run("decode", phase)
        return f"frames_out.{phase}"

    def finalize(self, index: int) -> None:
        """Nothing to do: the last denoise step's K/V stay."""

    def is_steady(self, index: int) -> bool:
        """Return whether the window is full in every row once this AR step has written."""
        first = self.frames + 1
        last_row = first + max(0, index - self.steps) * self.frames
        return index > 0 and last_row + self.frames >= self.window

    def _seed_rows(self) -> None:
        """Give every row the first chunk's K/V (row 0 has them) and place in the stream."""
        for ring in self._rings:
            ring[1:].copy_(ring[:1].expand_as(ring[1:]))
        first = self.frames + 1
        self.buffers["rows.position"].fill_(first)
        self.buffers["rows.timestep"].copy_(self.timesteps)
        self.buffers["frame"].fill_(first)


class Rollout(_Base):
    """Self-Forcing: all denoise steps of a chunk, then a clean pass that rewrites its K/V."""

    first_chunk_frames = 0
    chunk_frames = 0
    drain_steps = 0

    def start(self) -> None:
        """Nothing to do: the states are zeros."""

    def encode(self, index: int) -> None:
        """Nothing to encode: a chunk starts as noise."""

    def take_encoded(self, index: int) -> None:
        """Nothing to take."""

    def diffuse(self, index: int) -> None:
        self.fill_noise("noisy")
        self._denoise(self._phase(index))

    def take_finished(self, index: int) -> None:
        self.buffers["finished"].copy_(self.buffers["latent"])

    def decode(self, index: int) -> str | None:
        phase = "first" if index == 0 else "steady"
        self.stages.run("decode", phase)
        return f"frames_out.{phase}"

    def finalize(self, index: int) -> None:
        if self.stages.has("finalize"):
            self.buffers["noisy"].copy_(self.buffers["latent"])
            self.buffers["timestep"].zero_()
            self.stages.run("finalize", self._phase(index))
        self.buffers["frame"].add_(self.frames)

    def is_steady(self, index: int) -> bool:
        """Return whether the window is full once this AR step has written."""
        return (index + 1) * self.frames >= self.window

    def _phase(self, index: int) -> str:
        return "steady" if self.is_steady(index) else "filling"


FLOWS: dict[str, type[StreamBatch] | type[Rollout]] = {
    "stream-batch": StreamBatch,
    "rollout": Rollout,
}


def noise_filler(
    buffers: Mapping[str, Tensor], generator: torch.Generator
) -> Callable[[str], None]:
    """Return the function that fills a named buffer with noise from ``generator``."""

    def fill(name: str) -> None:
        buffers[name].normal_(generator=generator)

    return fill
