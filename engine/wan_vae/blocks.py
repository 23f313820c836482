"""The blocks of the Wan 2.1 VAE: norm, residual block, attention, resampling."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdrt.engine.convs import CausalConv, Conv, Forms, SplitConv, layer_form
from sdrt.kernels.wide_attention import ANYWHERE, wide_attention

FEW_CHANNELS = 4
"""Up to so many channels, a last layer is split: pictures, but not latents."""


def causal_conv(
    name: str, channels_in: int, channels_out: int, size: tuple[int, int], forms: Forms
) -> CausalConv:
    """Return a 3x3x3 causal convolution in its form; its state has its name."""
    form = layer_form(name, channels_in, forms)
    return CausalConv(name, channels_in, channels_out, size, form=form)


class RmsNorm(nn.Module):
    """``x / max(|x|, 1e-12) * sqrt(C) * gamma`` over the channels, then SiLU if asked for."""

    def __init__(self, channels: int, silu: bool = True) -> None:
        super().__init__()
        self.silu = silu
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[T, C, H, W]`` to the same shape and dtype, by way of float32."""
        x32 = x.float()
        length = x32.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        y = x32 * (math.sqrt(x.shape[1]) / length) * self.gamma.float().view(-1, 1, 1)
        return (functional.silu(y) if self.silu else y).to(x.dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU and causal convolution, twice, beside a shortcut."""

    def __init__(
        self, name: str, channels_in: int, channels_out: int, size: tuple[int, int], forms: Forms
    ) -> None:
        super().__init__()
        first, second = f"{name}.residual.2", f"{name}.residual.6"
        self.residual = nn.ModuleDict(  # the places that the public parameter names count
            {
                "0": RmsNorm(channels_in),
                "2": causal_conv(first, channels_in, channels_out, size, forms),
                "3": RmsNorm(channels_out),
                "6": causal_conv(second, channels_out, channels_out, size, forms),
            }
        )
        self.shortcut = Conv(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T, O, H, W]``."""
        layers = self.residual
        norm1, norm2 = cast(RmsNorm, layers["0"]), cast(RmsNorm, layers["3"])
        first, second = cast(CausalConv, layers["2"]), cast(CausalConv, layers["6"])
        y = first.convolve(first.normed_taps(x, norm1.gamma, states))
        # The first convolution's bias is added where the second's norm reads its result.
        y = second.normed_taps(y, norm2.gamma, states, first.bias)
        y = second.convolve(y, second.bias)
        return y + (x if self.shortcut is None else self.shortcut(x))


class Attention(nn.Module):
    """Attention with one head over the pixels of each frame by itself."""

    def __init__(self, channels: int, implementation: str = ANYWHERE) -> None:
        """Fix the sizes; ``implementation`` is one of ``kernels.wide_attention``."""
        super().__init__()
        self.implementation = implementation
        self.norm = RmsNorm(channels, silu=False)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[T, C, H, W]`` to the same shape."""
        t, c, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(t, h * w, c)
        query, key, value = self.to_qkv(tokens).chunk(3, dim=-1)
        y = self.proj(wide_attention(query, key, value, self.implementation))
        return x + y.reshape(t, h, w, c).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves height and width and, if temporal, the number of frames.

    A stream's very first frame is not joined with another: it stays, and is what the next
    frames' history starts with.
    """

    def __init__(
        self, name: str, channels: int, size: tuple[int, int], temporal: bool, first: bool
    ) -> None:
        super().__init__()
        self.first = first
        self.resample = nn.ModuleDict({"1": Conv(channels, channels, 3, stride=2, padding=2)})
        self.time_conv = None
        if temporal:
            halved = (size[0] // 2, size[1] // 2)
            self.time_conv = CausalConv(
                f"{name}.time_conv", channels, channels, halved, kernel=1, stride=2
            )

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T', C, H / 2, W / 2]``."""
        # The picture has a margin below and on the right only. Padded by two on all sides, the
        # results but the first of each row and column are the same, without a padded copy of it.
        x = self.resample["1"](x)[:, :, 1:, 1:].contiguous(memory_format=torch.channels_last)
        conv = self.time_conv
        if conv is None:
            return x
        if not self.first:
            return conv(x, states)
        y = torch.cat([x[:1], conv.convolve(conv.taps(x), conv.bias)]) if x.shape[0] > 1 else x
        states[conv.name].copy_(x[-1:])
        return y


class Upsample(nn.Module):
    """Doubles height and width, halves the channels and, if temporal, doubles the frames.

    A stream's very first frame is not doubled, and the frames after it have no memory of it.
    """

    def __init__(
        self, name: str, channels: int, size: tuple[int, int], temporal: bool, first: bool
    ) -> None:
        super().__init__()
        self.first = first
        self.resample = nn.ModuleDict({"1": Conv(channels, channels // 2, 3, padding=1)})
        self.time_conv = None
        if temporal:
            self.time_conv = CausalConv(f"{name}.time_conv", channels, 2 * channels, size, kernel=1)

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T', C / 2, 2H, 2W]``."""
        if self.time_conv is not None:
            x = double_frames(x, self.time_conv, self.first, states)
        return self.resample["1"](enlarge(x))


class Middle(nn.ModuleList):
    """A residual block, attention, a residual block."""

    def __init__(self, name: str, channels: int, size: tuple[int, int], forms: Forms) -> None:
        before, after = (
            ResidualBlock(f"{name}.{place}", channels, channels, size, forms) for place in (0, 2)
        )
        implementation = (forms or {}).get(f"{name}.1", ANYWHERE)
        super().__init__([before, Attention(channels, implementation), after])

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Map ``[T, C, H, W]`` to the same shape."""
        before, attention, after = self
        return after(attention(before(x, states)), states)


class Head(nn.ModuleDict):
    """Norm, SiLU and the last causal convolution."""

    def __init__(self, channels_in: int, last: CausalConv | SplitConv) -> None:
        super().__init__({"0": RmsNorm(channels_in), "2": last})

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T, O, H, W]``."""
        return self["2"](self["0"](x), states)


def double_frames(x: Tensor, conv: CausalConv, first: bool, states: dict[str, Tensor]) -> Tensor:
    """Double the frames ``[T, C, H, W]`` by ``conv``; a stream's very first stays single."""
    if not first:
        return interleave(conv(x, states))
    return torch.cat([x[:1], interleave(conv(x[1:], states))]) if x.shape[0] > 1 else x


def interleave(pairs: Tensor) -> Tensor:
    """Turn ``[T, 2C, H, W]``, two frames side by side, into ``[2T, C, H, W]``, channels_last."""
    t, c, h, w = pairs.shape
    frames = pairs.permute(0, 2, 3, 1).reshape(t, h, w, 2, c // 2).permute(0, 3, 1, 2, 4)
    return frames.reshape(2 * t, h, w, c // 2).permute(0, 3, 1, 2)


def enlarge(x: Tensor) -> Tensor:
    """Repeat each pixel of ``[T, C, H, W]`` twice in both directions; stays channels_last.

    The same values as nearest-exact interpolation, whose index arithmetic is in float.
    """
    t, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(t, h, 2, w, 2, c)
    return pixels.reshape(t, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
