"""The layers of TAEHV's encoder and decoder, under their public names."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdrt.engine.preset.preset import TaehvConfig

BLOCKS_PER_LEVEL = 3
ENCODER_FRAME_STRIDES = (2, 2, 1)
"""Frames that each level of the encoder joins; the decoder splits in the opposite order."""


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


class MemoryBlock(nn.Module):
    """A residual block that also sees the input it had for the frame before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Sequential(
            _conv(2 * channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
        )

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        """Map ``[T, C, H, W]`` to the same shape; ``last`` ``[1, C, H, W]`` is overwritten."""
        past = torch.cat([last, x[:-1]])
        y = functional.relu(self.conv(torch.cat([x, past], dim=1)) + x)
        last.copy_(x[-1:])
        return y


class FramePool(nn.Module):
    """Joins each ``frames`` neighbours into one frame."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(channels * frames, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T / frames, C, H, W]``."""
        t, c, h, w = x.shape
        # By way of [T, H, W, C]: reshaping [T, C, H, W] itself would leave channels_last.
        groups = x.permute(0, 2, 3, 1).reshape(t // self.frames, self.frames, h, w, c)
        joined = groups.permute(0, 2, 3, 1, 4).reshape(t // self.frames, h, w, self.frames * c)
        return self.conv(joined.permute(0, 3, 1, 2))


class FrameGrow(nn.Module):
    """Splits each frame into ``frames`` of twice the height and width.

    The reference enlarges first; a 1x1 convolution gives the same before it, at a quarter of the
    work.
    """

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(channels, channels * frames, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T * frames, C, 2H, 2W]``."""
        t, c, h, w = x.shape
        parts = self.conv(x).permute(0, 2, 3, 1).reshape(t, h, w, self.frames, c)
        frames = parts.permute(0, 3, 1, 2, 4)[:, :, :, None, :, None]
        pixels = frames.expand(t, self.frames, h, 2, w, 2, c)
        return pixels.reshape(t * self.frames, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def _blocks(channels: int) -> list[nn.Module]:
    return [MemoryBlock(channels) for _ in range(BLOCKS_PER_LEVEL)]


def encoder_layers(config: TaehvConfig) -> nn.ModuleList:
    """Return the layers at the places that the public parameter names count."""
    width = config.encoder_width
    layers: list[nn.Module] = [_conv(3, width), nn.ReLU()]
    for frames in ENCODER_FRAME_STRIDES:
        layers += [FramePool(width, frames), _conv(width, width, stride=2, bias=False)]
        layers += _blocks(width)
    return nn.ModuleList([*layers, _conv(width, config.latent_channels)])


def decoder_layers(config: TaehvConfig) -> nn.ModuleList:
    """Return the layers at the places that the public parameter names count."""
    widths = config.decoder_widths
    # The identities keep the places of two layers without weights: the soft clamp, which the
    # decoder does in float32, and the enlarging, which FrameGrow does.
    layers: list[nn.Module] = [nn.Identity(), _conv(config.latent_channels, widths[0]), nn.ReLU()]
    for frames, (width, following) in zip(
        reversed(ENCODER_FRAME_STRIDES), pairwise(widths), strict=True
    ):
        layers += [*_blocks(width), nn.Identity(), FrameGrow(width, frames)]
        layers.append(_conv(width, following, bias=False))
    return nn.ModuleList([*layers, nn.ReLU(), _conv(widths[-1], 3)])
