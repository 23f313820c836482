"""TAEHV under its public names, written the plain way: enlarge, then split frames."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdrt.engine.preset.preset import TaehvConfig

Caches = dict[str, Tensor]
"""Layer name -> the last frame that a memory block saw, ``[1, C, H, W]``."""

JOINED = (2, 2, 1)
"""Frames that the encoder's levels join."""


def _conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class MemoryBlock(nn.Module):
    """A residual block that also sees the frame before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.name = ""
        self.conv = nn.Sequential(
            _conv(2 * channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
        )

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        last = caches.get(self.name)
        if last is None:
            last = torch.zeros_like(x[:1])
        past = torch.cat([last, x[:-1]])
        caches[self.name] = x[-1:].clone()
        return F.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class Pool(nn.Module):
    """Joins neighbouring frames."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(channels * frames, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.frames * x.shape[1], *x.shape[2:]))


class Grow(nn.Module):
    """Splits every frame."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * frames, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class Clamp(nn.Module):
    """Bends latents into (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Taehv(nn.Module):
    """The small autoencoder; frames are a batch ``[T, C, H, W]``."""

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__()
        width = config.encoder_width
        layers: list[nn.Module] = [_conv(3, width), nn.ReLU()]
        for frames in JOINED:
            layers += [Pool(width, frames), _conv(width, width, stride=2, bias=False)]
            layers += [MemoryBlock(width) for _ in range(3)]
        self.encoder = nn.Sequential(*layers, _conv(width, config.latent_channels))
        widths = config.decoder_widths
        layers = [Clamp(), _conv(config.latent_channels, widths[0]), nn.ReLU()]
        for frames, (width, following) in zip(reversed(JOINED), pairwise(widths), strict=True):
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, frames)]
            layers.append(_conv(width, following, bias=False))
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3))
        for name, module in self.named_modules():
            if isinstance(module, MemoryBlock):
                module.name = name

    def encode(self, pixels: Tensor, caches: Caches) -> Tensor:
        """Map ``[4n, 3, H, W]`` in [0, 1] to ``[n, C, h, w]``."""
        return _run(self.encoder, pixels, caches)

    def decode(self, latents: Tensor, caches: Caches) -> Tensor:
        """Map ``[n, C, h, w]`` to ``[4n, 3, H, W]``; a stream's first three frames are void."""
        return _run(self.decoder, latents, caches)


def _run(layers: nn.Sequential, x: Tensor, caches: Caches) -> Tensor:
    for layer in layers:
        x = layer(x, caches) if isinstance(layer, MemoryBlock) else layer(x)
    return x
