"""Noise by motion: how much a chunk of input frames gets, and where it is mixed in."""

from typing import Any

import torch
from torch import Tensor

from sdrt.engine.frames import FramesToPixels
from sdrt.engine.module import PackageModule

FULL_MOTION = 0.2
"""Difference between neighbouring frames (root mean square of pixels) that counts as the most."""


def motion_noise_scale(pixels: Tensor, scale: Tensor, initial: float) -> Tensor:
    """Return a chunk's noise scale: much motion, less noise (StreamDiffusionV2's rule).

    Args:
        pixels: ``[1 + F, ...]`` in [-1, 1], float32: the frame before the chunk, then the chunk.
        scale: the last chunk's scale, float64 ``[1]``.
        initial: the scale that a still picture tends to.
    Returns:
        The scale, float64 ``[1]``.
    """
    difference = (pixels[1:] - pixels[:-1]).flatten(1)
    most = difference.square().mean(dim=1).sqrt().max()
    motion = (most / FULL_MOTION).clamp(0, 1).double()
    return (initial - 0.1 * motion) * 0.9 + scale * 0.1


class MotionNoise(PackageModule):
    """Chooses how much noise a chunk of input frames gets, and the timestep that goes with it."""

    def __init__(
        self, initial_scale: float, num_train_timesteps: int, height: int, width: int, first: bool
    ) -> None:
        """Fix the sizes.

        Args:
            initial_scale: noise scale of a still picture.
            num_train_timesteps: length of the timestep table.
            height: rows of a frame.
            width: columns of a frame.
            first: whether this is a stream's first call, which has no frame to compare with.
        """
        super().__init__()
        self.initial_scale = initial_scale
        self.num_train_timesteps = num_train_timesteps
        self.height, self.width = height, width
        self.first = first
        self.to_pixels = FramesToPixels(signed=True, dtype=torch.float32)

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """Return ``last_frame`` ``[H, W, 3]`` uint8 and ``noise_scale`` ``[1]`` float64.

        The first call sets both; their zeros mean nothing.
        """
        shape = (self.height, self.width, 3)
        return {
            "last_frame": torch.zeros(shape, dtype=torch.uint8, device=device),
            "noise_scale": torch.zeros(1, dtype=torch.float64, device=device),
        }

    def roles(self) -> dict[str, Any]:
        return {"last_frame": "picture", "noise_scale": "noise_scale"}

    def forward(
        self, frames: Tensor, *, states: dict[str, Tensor]
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Look at the next chunk of a stream.

        The timestep lies a tenth of the table below the noise that goes in, as in the reference.

        Args:
            frames: ``[F, H, W, 3]`` uint8.
            states: as ``states()`` gives them; overwritten.
        Returns:
            The noise scale, float32 ``[1]``, and, after the first call, the timestep of the first
            denoise step, int64 ``[1]``.
        """
        last, scale = states["last_frame"], states["noise_scale"]
        if self.first:
            initial = torch.full_like(scale, self.initial_scale)
            scale.copy_(initial)
            last.copy_(frames[-1])
            return initial.float()
        pixels = self.to_pixels(torch.cat([last[None], frames]))
        new = motion_noise_scale(pixels, scale, self.initial_scale)
        timestep = (self.num_train_timesteps * new).long() - self.num_train_timesteps // 10
        scale.copy_(new)
        last.copy_(frames[-1])
        return new.float(), timestep


class Intake(PackageModule):
    """Frames to pixels, and the noise scale that the chunk's motion asks for."""

    def __init__(self, pixels: FramesToPixels, motion: MotionNoise) -> None:
        super().__init__()
        self.pixels, self.motion = pixels, motion

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return self.motion.states(device)

    def roles(self) -> dict[str, Any]:
        return self.motion.roles()

    def forward(self, frames: Tensor, *, states: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return pixels ``[F, 3, H, W]``, noise scale ``[1]`` and timestep ``[1]``, both float32.

        The first chunk of a stream has no timestep of its own: it takes the preset's steps.

        Args:
            frames: uint8 ``[F, H, W, 3]``.
        """
        pixels = self.pixels(frames)
        if self.motion.first:
            return pixels, self.motion(frames, states=states)
        scale, timestep = self.motion(frames, states=states)
        return pixels, scale, timestep.float()


class MixNoise(PackageModule):
    """Noise a chunk of latents as StreamDiffusionV2 does: ``noise a + latent (1 - a)``."""

    def forward(self, latents: Tensor, noise: Tensor, noise_scale: Tensor) -> Tensor:
        """Return the noisy latent ``[1, F, C, h, w]`` of ``[F, C, h, w]`` tensors."""
        return (noise * noise_scale + latents * (1 - noise_scale)).unsqueeze(0)
