"""Convolutions of the VAE's large pictures, with residual, RMS norm and SiLU in the same pass.

Activations between these convolutions are in blocks of 8 channels (c8): ``[T, C / 8, H, W, 8]``.
"""

import ctypes
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import use_hopper
from sdrt.kernels.library import address, check, library, stream_of

CHANNELS_IN = 16
"""Channels in of one matrix product: a multiple of it is needed."""


def to_c8(x: Tensor) -> Tensor:
    """Return ``[T, C, H, W]`` as contiguous ``[T, C / 8, H, W, 8]``."""
    return x.unflatten(1, (-1, 8)).permute(0, 1, 3, 4, 2).contiguous()


def from_c8(x: Tensor) -> Tensor:
    """Return ``[T, C / 8, H, W, 8]`` as ``[T, C, H, W]``, channels_last."""
    y = x.permute(0, 1, 4, 2, 3).flatten(1, 2)
    return y.contiguous(memory_format=torch.channels_last)


def pack_weight(weight: Tensor) -> Tensor:
    """Return a 3x3x3 or 3x3 convolution's weight as the kernel streams it.

    Args:
        weight: ``[O, C, 3, 3, 3]``, oldest time tap first, or ``[O, C, 3, 3]``; O is 16 or a
            multiple of 32, C one of 16.
    Returns:
        ``[phases, C / 16, taps in space, 2, time taps, O, 8]``: for each tap and 16 channels in,
        core matrices of 8 channels in, the newest time tap first.
    """
    return _pack((weight if weight.ndim == 5 else weight.unsqueeze(2)).unsqueeze(0))


def pack_upsample_weight(weight: Tensor) -> Tensor:
    """Return a 3x3 convolution's weight, for twice the height and width, as the kernel streams it.

    Of the three taps in a row or column, two meet copies of the same pixel: their sum is what
    remains, 2x2 taps for each of the four places that an output pixel has on its input pixel.

    Args:
        weight: ``[O, C, 3, 3]``.
    Returns:
        As ``pack_weight``, with 4 phases and 4 taps.
    """
    first, middle, last = weight.float().unbind(2)
    phases = []
    for rows in ((first, middle + last), (first + middle, last)):
        left, centre, right = torch.stack(rows, 2).unbind(3)
        phases += [
            torch.stack(columns, 3) for columns in ((left, centre + right), (left + centre, right))
        ]
    return _pack(torch.stack(phases).to(weight.dtype).unsqueeze(3))


def _channel_order(channels: int) -> list[int]:
    """Return the channels in the order of a weight's rows.

    A thread has two columns of each 8 of a matrix product; in this order those of successive
    eights are neighbours in its pixel, 8 (or 4) channels that it reads and writes at once.
    """
    vector = 8 if channels % 32 == 0 else 4
    group, rest = 4 * vector, range(4 * vector)
    order = [m % 8 // 2 * vector + m // 8 * 2 + m % 2 for m in rest]
    return [first + place for first in range(0, channels, group) for place in order]


def _pack(weight: Tensor) -> Tensor:
    """Pack ``[phases, O, C, time taps, side, side]``."""
    weight = weight[:, _channel_order(weight.shape[1])].flip(3).flatten(4)
    return weight.unflatten(2, (-1, 2, 8)).permute(0, 2, 6, 3, 5, 1, 4).contiguous()


def _unpack(packed: Tensor) -> Tensor:
    """Return what ``_pack`` was given."""
    order = _channel_order(packed.shape[5])
    places = [order.index(channel) for channel in range(len(order))]
    side = math.isqrt(packed.shape[2])
    weight = packed[:, :, :, :, :, places].permute(0, 5, 1, 3, 6, 4, 2)
    return weight.flatten(2, 4).flip(3).unflatten(4, (side, side))


def causal_conv(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    frames: int,
    position: Tensor | None = None,
    residual: Tensor | None = None,
    x_out: Tensor | None = None,
    y_out: Tensor | None = None,
    gamma: Tensor | None = None,
    ring: bool = True,
) -> None:
    """Convolve the new frames of a stream, 3x3x3 or 3x3, and write what the next layers read.

    The kernel has O of 96 and 192, with three time taps or upsampling, and 16 with none.

    ``x = conv(y) + bias + residual`` and ``silu(x / max(|x|, 1e-12) * sqrt(O) * gamma)``, the
    length over the channels; both from the sum in float32.

    Args:
        y: ``[R, C / 8, H, W, 8]``, contiguous. With time taps a ring of at least
            ``frames + 2``: frame f of the stream at slot f mod R, those before its start
            zero. Else the frames.
        weight: of ``pack_weight``; of ``pack_upsample_weight``, height and width double.
        bias: ``[O]``.
        frames: new frames, T.
        position: int64 scalar on the device, frames of the stream before them; None is 0.
        residual: T frames of O channels, c8 or ``[T, O, H, W]`` in channels_last; may be
            ``x_out`` itself. None when upsampling.
        x_out: overwritten with x; layouts as the residual.
        y_out: normed x goes here; layouts as the residual, and if ``ring``, a ring as ``y``.
        gamma: ``[O]``, the norm's, for ``y_out``.
        ring: whether ``y_out`` is one.
    """
    op = torch.ops.sdrt.causal_conv if use_hopper(y) else causal_conv_ref
    op(y, weight, bias, gamma, residual, position, frames, ring, x_out, y_out)


def causal_conv_ref(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    residual: Tensor | None,
    position: Tensor | None,
    frames: int,
    ring: bool,
    x_out: Tensor | None,
    y_out: Tensor | None,
) -> None:
    """Plain PyTorch for :func:`causal_conv`."""
    time_taps = weight.shape[4]
    steps = torch.arange(1 - time_taps, frames, device=y.device)
    if position is not None:
        steps = steps + position
    video = from_c8(y[steps % y.shape[0]] if time_taps > 1 else y)
    x = _convolve(video, _unpack(weight)).float()
    if bias is not None:
        x = x + bias.float().view(-1, 1, 1)
    if residual is not None:
        x = x + _plain(residual).float()
    if x_out is not None:
        x_out.copy_(_like(x, x_out))
    if y_out is not None and gamma is not None:
        length = x.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        x = x / length * math.sqrt(x.shape[1]) * gamma.float().view(-1, 1, 1)
        normed = _like(F.silu(x), y_out).to(y_out.dtype)
        if ring:
            y_out.index_copy_(0, steps[time_taps - 1 :] % y_out.shape[0], normed)
        else:
            y_out.copy_(normed)


def _convolve(video: Tensor, weight: Tensor) -> Tensor:
    """Convolve ``[T, C, H, W]`` with ``[phases, O, C, time taps, side, side]``."""
    if weight.shape[-1] == 3:
        clip = video.transpose(0, 1).unsqueeze(0)
        return F.conv3d(clip, weight[0], padding=(0, 1, 1)).squeeze(0).transpose(0, 1)
    rows = []
    for row in range(2):
        columns = []
        for column in range(2):
            padded = F.pad(video, (1 - column, column, 1 - row, row))
            columns.append(F.conv2d(padded, weight[2 * row + column, :, :, 0]))
        rows.append(torch.stack(columns, -1))
    t, channels, height, width = rows[0].shape[:4]
    return torch.stack(rows, 3).reshape(t, channels, 2 * height, 2 * width)


def _plain(x: Tensor) -> Tensor:
    """Return frames as ``[T, C, H, W]``, whichever of the two layouts they have."""
    return x if x.ndim == 4 else from_c8(x)


def _like(x: Tensor, target: Tensor) -> Tensor:
    """Return ``[T, C, H, W]`` in the layout of ``target``."""
    return x if target.ndim == 4 else to_c8(x)


class _Layout(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("frame", "block", "pixel")]

    @classmethod
    def of(cls, x: Tensor | None) -> "_Layout":
        """Return where frames ``[T, C / 8, H, W, 8]`` or ``[T, C, H, W]`` keep their elements."""
        if x is None:
            return cls(0, 0, 0)
        if x.ndim == 5:
            assert x.is_contiguous()
            return cls(x.stride(0), x.stride(1), 8)
        assert x.is_contiguous(memory_format=torch.channels_last)
        return cls(x.stride(0), 8, x.shape[1])


class _Arguments(ctypes.Structure):
    """``ConvArguments`` of csrc/causal_conv.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "gamma", "residual")),
        *((name, ctypes.c_void_p) for name in ("x_out", "y_out", "position")),
        *((name, _Layout) for name in ("residual_layout", "x_layout", "y_layout")),
        *((name, ctypes.c_int) for name in ("frames", "height", "width")),
        *((name, ctypes.c_int) for name in ("channels_in", "channels_out")),
        *((name, ctypes.c_int) for name in ("input_frames", "ring_out", "time_taps", "upsample")),
    ]


@torch.library.custom_op("sdrt::causal_conv", mutates_args={"x_out", "y_out"}, device_types="cuda")
def _op(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    residual: Tensor | None,
    position: Tensor | None,
    frames: int,
    ring: bool,
    x_out: Tensor | None,
    y_out: Tensor | None,
) -> None:
    kernels = library()
    assert kernels is not None, "the compiled kernels are not installed"
    assert y.is_contiguous() and weight.is_contiguous()
    pointers = (y, weight, bias, gamma, residual, x_out, y_out, position)
    arguments = _Arguments(
        *(address(tensor) for tensor in pointers),
        *(_Layout.of(tensor) for tensor in (residual, x_out, y_out)),
        *(frames, *y.shape[2:4], 8 * y.shape[1], weight.shape[5]),
        *(len(y), len(y_out) if ring and y_out is not None else 0),
        *(weight.shape[4], int(len(weight) == 4)),
    )
    check("causal_conv", kernels.sdrt_causal_conv(ctypes.byref(arguments), stream_of(y)))


@_op.register_fake
def _(*_: object) -> None:
    return None
