"""Frames in and out: uint8 pictures to pixels and back, and the noise that motion asks for."""

import torch
from torch import Tensor

from sdrt.engine.module import PackageModule

FULL_MOTION = 0.2
"""Difference between neighbouring frames (root mean square of pixels) that counts as the most."""


class FramesToPixels(PackageModule):
    """Turns frames into the pixels that an encoder takes."""

    def __init__(self, signed: bool, dtype: torch.dtype) -> None:
        """Choose the pixels' range, [-1, 1] if ``signed`` or else [0, 1], and their dtype."""
        super().__init__()
        self.signed = signed
        self.dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames ``[F, H, W, 3]`` uint8 to pixels ``[F, 3, H, W]``, channels_last."""
        levels = frames.permute(0, 3, 1, 2).float()
        pixels = levels / 127.5 - 1 if self.signed else levels / 255
        return pixels.to(self.dtype)


class PixelsToFrames(PackageModule):
    """Turns the pixels that a decoder gives into frames."""

    def __init__(self, signed: bool) -> None:
        """Choose the pixels' range: [-1, 1] if ``signed``, else [0, 1]."""
        super().__init__()
        self.signed = signed

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``[F, 3, H, W]`` to the nearest frames ``[F, H, W, 3]`` uint8.

        Pixels out of range are clamped.
        """
        levels = (pixels.float() + 1) * 127.5 if self.signed else pixels.float() * 255
        frames = levels.round().clamp(0, 255).to(torch.uint8)
        return frames.permute(0, 2, 3, 1).contiguous()


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
