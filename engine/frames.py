"""Frames in and out: uint8 pictures to pixels and back."""

import torch
from torch import Tensor

from sdrt.engine.module import PackageModule


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
