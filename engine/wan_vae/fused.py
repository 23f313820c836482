"""Blocks of the Wan VAE whose convolutions add, normalise and activate in the same pass."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from sdrt.engine.convs import TAPS, CausalConv, Conv, History, SplitConv
from sdrt.engine.wan_vae.blocks import RmsNorm, double_frames
from sdrt.kernels.causal_conv import causal_conv, pack_upsample_weight, pack_weight, to_c8
from sdrt.kernels.norm_silu_ring import norm_silu_ring

SPLIT_CHANNELS = 16
"""Results of a split layer for which the kernel is compiled."""
CHANNELS_OUT = (96, 192)
"""Widths for which the kernel is compiled: all channels of a pixel are normalised at once."""

POSITION = "position"
"""State: frames of the stream so far at the pixels' frame rate, int64 ``[1]``."""


class NormTarget(NamedTuple):
    """Where a block writes the norm and SiLU of its result, for the layer after it."""

    gamma: Tensor | None = None
    frames: Tensor | None = None
    """A ring ``[R, C / 8, H, W, 8]``, or plain frames ``[T, C, H, W]``, channels_last."""
    ring: bool = False


NOWHERE = NormTarget()
"""Of a layer before one that norms for itself."""


class FusedConv(History):
    """A 3x3x3 causal convolution that reads a ring of frames; its input is never copied.

    The ring, ``[R, C / 8, H, W, 8]``, holds the frames of a call and the two before them: what
    makes a frame writes it there, normalised and activated.
    """

    def __init__(
        self, name: str, channels_in: int, channels_out: int, size: tuple[int, int], frames: int
    ) -> None:
        """Fix the sizes; ``frames`` are the most of one call."""
        super().__init__()
        self.name = name
        self.history_shape = (frames + TAPS - 1, channels_in // 8, *size, 8)
        shape = pack_weight(torch.empty(channels_out, channels_in, TAPS, 3, 3, device="meta")).shape
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(channels_out))

    def zero_history(self, device: torch.device | str) -> Tensor:
        """Return the ring before a stream: zeros, contiguous."""
        return torch.zeros(self.history_shape, dtype=self.weight.dtype, device=device)


class FusedBlock(nn.Module):
    """A residual block on rings; the same parameters and results as ``ResidualBlock``."""

    def __init__(
        self,
        name: str,
        channels_in: int,
        channels_out: int,
        size: tuple[int, int],
        rate: int,
        largest_call: int,
    ) -> None:
        """Fix the sizes.

        Args:
            rate: pixel frames of one frame here: 1, 2 or 4.
            largest_call: most pixel frames of one call.
        """
        super().__init__()
        self.rate, self.channels_out = rate, channels_out
        frames = -(-largest_call // rate)
        self.residual = nn.ModuleDict(  # the places that the public parameter names count
            {
                "0": RmsNorm(channels_in),
                "2": FusedConv(f"{name}.residual.2", channels_in, channels_out, size, frames),
                "3": RmsNorm(channels_out),
                "6": FusedConv(f"{name}.residual.6", channels_out, channels_out, size, frames),
            }
        )
        self.shortcut = Conv(channels_in, channels_out, 1) if channels_in != channels_out else None

    def target(self, states: dict[str, Tensor]) -> NormTarget:
        """Return where the layer before puts the norm of what it passes on."""
        norm, conv = cast(RmsNorm, self.residual["0"]), cast(FusedConv, self.residual["2"])
        return NormTarget(norm.gamma, states[conv.name], ring=True)

    def forward(
        self,
        x: Tensor,
        states: dict[str, Tensor],
        normed: bool,
        target: NormTarget,
        blocked: bool | None,
        bias: Tensor | None = None,
    ) -> Tensor | None:
        """Map T frames to the next residual stream.

        Args:
            x: ``[T, C, H, W]``, channels_last.
            normed: the ring of the first convolution has the norm of ``x`` already.
            target: of the layer after this one.
            blocked: whether the result is in blocks of 8 channels; None: there is none.
            bias: ``[C]``, of the convolution that made ``x`` without it; there is no shortcut.
        """
        first, norm, second = (self.residual[place] for place in ("2", "3", "6"))
        first, norm, second = cast(FusedConv, first), cast(RmsNorm, norm), cast(FusedConv, second)
        position = level_position(states, self.rate)
        middle = states[second.name]
        if not normed:
            before, ring = cast(RmsNorm, self.residual["0"]), states[first.name]
            biased = None
            if bias is not None:
                assert self.shortcut is None
                biased = empty_frames(x, len(x), x.shape[1], x.shape[2:], blocked=True)
            norm_silu_ring(x, before.gamma, position, ring, bias, biased)
            x = x if biased is None else biased
        causal_conv(
            states[first.name],
            first.weight,
            first.bias,
            y_out=middle,
            gamma=norm.gamma,
            frames=len(x),
            position=position,
        )
        x_out = None
        if blocked is not None:
            x_out = empty_frames(x, len(x), self.channels_out, middle.shape[2:4], blocked)
        causal_conv(
            middle,
            second.weight,
            second.bias,
            residual=x if self.shortcut is None else self.shortcut(x),
            x_out=x_out,
            y_out=target.frames,
            gamma=target.gamma,
            ring=target.ring,
            frames=len(x),
            position=position,
        )
        return x_out


class FusedUpsample(nn.Module):
    """``Upsample`` without the doubled picture: four 2x2 convolutions of the small one."""

    def __init__(
        self,
        name: str,
        channels: int,
        size: tuple[int, int],
        temporal: bool,
        first: bool,
        rate: int,
    ) -> None:
        """Fix the sizes; ``rate``: pixel frames of one frame that comes out."""
        super().__init__()
        self.first, self.rate, self.channels_out = first, rate, channels // 2
        self.resample = nn.ModuleDict({"1": _UpsampleConv(channels, channels // 2)})
        self.time_conv = None
        if temporal:
            self.time_conv = CausalConv(f"{name}.time_conv", channels, 2 * channels, size, kernel=1)

    def forward(self, x: Tensor, states: dict[str, Tensor], target: NormTarget) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T', C / 2, 2H, 2W]``, channels_last.

        Args:
            x: channels_last, or in blocks of 8 channels where no frames are doubled.
            target: as :class:`FusedBlock` takes it.
        """
        if self.time_conv is not None:
            x = double_frames(x, self.time_conv, self.first, states)
        x = x if x.ndim == 5 else to_c8(x)
        conv = cast(_UpsampleConv, self.resample["1"])
        size = (2 * x.shape[2], 2 * x.shape[3])
        out = empty_frames(x, len(x), self.channels_out, size, blocked=False)
        causal_conv(
            x,
            conv.weight,
            conv.bias,
            frames=len(x),
            position=level_position(states, self.rate) if target.ring else None,
            x_out=out,
            y_out=target.frames,
            gamma=target.gamma,
            ring=target.ring,
        )
        return out


class FusedSplitConv(SplitConv):
    """``SplitConv`` whose products the fused kernel makes."""

    def __init__(
        self, name: str, channels_in: int, channels_out: int, size: tuple[int, int]
    ) -> None:
        super().__init__(name, channels_in, channels_out, size)
        self.partial = self.weight.shape[0]
        self.weight = nn.Parameter(torch.empty(pack_weight(self.weight.detach()).shape))

    def products(self, x: Tensor) -> Tensor:
        """Return the taps' results ``[T, 3 O and fill, H, W]`` of frames in either layout."""
        x = x if x.ndim == 5 else to_c8(x)
        out = empty_frames(x, len(x), self.partial, x.shape[2:4], blocked=False)
        causal_conv(x, self.weight, frames=len(x), x_out=out)
        return out


class _UpsampleConv(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        shape = pack_upsample_weight(
            torch.empty(channels_out, channels_in, 3, 3, device="meta")
        ).shape
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(channels_out))


def level_position(states: dict[str, Tensor], rate: int) -> Tensor:
    """Return the stream's frames so far at a level, int64 ``[1]``: a stream's first is alone."""
    return (states[POSITION] + (rate - 1)) // rate


def empty_frames(
    like: Tensor, frames: int, channels: int, size: tuple[int, ...], blocked: bool
) -> Tensor:
    """Return uninitialised frames, in blocks of 8 channels or channels_last."""
    if blocked:
        return like.new_empty(frames, channels // 8, *size, 8)
    return like.new_empty(frames, *size, channels).permute(0, 3, 1, 2)
