"""Frames in host memory, on their way to and from the device."""

import numpy as np
import torch
from torch import Tensor

from sdrt.runtime.directory.specs import StreamSpec

HOST_SLOTS = 4
"""Host buffers for frames; more than in flight, so that received frames stay valid a while."""


class HostFrames:
    """Pinned buffers of a session, one for each AR step that may be under way."""

    def __init__(self, stream: StreamSpec, device: torch.device) -> None:
        """Allocate them for the largest chunk of a stream."""
        self.picture = (stream.height, stream.width, 3)
        pinned = device.type == "cuda"

        def allocate(*counts: int) -> list[Tensor]:
            return [
                torch.zeros((max(counts), *self.picture), dtype=torch.uint8, pin_memory=pinned)
                for _ in range(HOST_SLOTS)
            ]

        self._frames_in = allocate(stream.first_frames_in, stream.frames_in)
        self._frames_out = allocate(stream.first_frames_out, stream.frames_out)
        self.frames_out = [tensor.numpy() for tensor in self._frames_out]
        """uint8 ``[N, H, W, 3]`` a slot: what :meth:`stage_out` copies to."""

    def stage_in(self, slot: int, frames: np.ndarray | Tensor, target: Tensor) -> None:
        """Copy frames into pinned memory, and from there to the device without waiting."""
        host = self._frames_in[slot][: len(frames)]
        if isinstance(frames, np.ndarray):
            host.numpy()[:] = frames  # takes any strides and memory that is read only
        else:
            host.copy_(frames)
        target.copy_(host, non_blocking=True)

    def stage_out(self, slot: int, frames: Tensor) -> None:
        """Copy finished frames to pinned memory without waiting."""
        self._frames_out[slot][: len(frames)].copy_(frames, non_blocking=True)

    def frame_in(self, slot: int, index: int) -> Tensor:
        """Return an input frame ``[1, H, W, 3]`` that was staged in a slot."""
        return self._frames_in[slot][index : index + 1]
