"""Convolutions over frames that continue across calls, in the layouts that CUDA runs fast."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

TAPS = 3
"""Frames that a causal convolution sees: the current one and the two before it."""

FORMS = ("stacked", "conv3d")


class CausalConvError(ValueError):
    """A form that does not exist."""


def conv_form(channels_in: int) -> str:
    """Return the form in which a 3x3x3 causal convolution is faster.

    Measured on an H200 in bf16 with as many channels out as in, stacked against conv3d:
    1.38 and 3.4 ms (96 channels, 4x480x832), 1.59 and 1.25 ms (192 channels, 4x240x416),
    0.54 and 0.72 ms (384 channels, 2x120x208).
    """
    return "conv3d" if 96 < channels_in < 384 else "stacked"


def layer_form(name: str, channels_in: int, forms: Mapping[str, str] | None) -> str:
    """Return the form of the layer ``name``: what ``forms`` says, else ``conv_form``'s choice.

    Raises:
        CausalConvError: ``forms`` names one that does not exist.
    """
    form = (forms or {}).get(name) or conv_form(channels_in)
    if form not in FORMS:
        raise CausalConvError(f"{name}: unknown form {form!r}, expected one of {', '.join(FORMS)}")
    return form


def channels_last(weight: Tensor) -> Tensor:
    """Return a copy of a 4-D or 5-D tensor with its channels (dimension 1) innermost.

    Unlike ``contiguous``, it also gives 1x1 kernels the strides of that format.
    """
    return empty_channels_last(weight.shape, dtype=weight.dtype, device=weight.device).copy_(weight)


def empty_channels_last(shape: tuple[int, ...], **options) -> Tensor:
    """Return an uninitialised 4-D or 5-D tensor with its channels (dimension 1) innermost."""
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.empty(shape, memory_format=layout, **options)


def pack_weight(weight: Tensor, form: str) -> Tensor:
    """Return a public ``[O, C, 3, kh, kw]`` weight as ``CausalConv`` holds it.

    Stacked: ``[O, 3C, kh, kw]`` with the oldest frame's channels first. Conv3d: the same shape.
    """
    if form == "stacked":
        weight = weight.transpose(1, 2).flatten(1, 2)
    return channels_last(weight)


class Conv(nn.Module):
    """A convolution of each frame by itself; the weight is channels_last from the start."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(empty_channels_last((channels_out, channels_in, kernel, kernel)))
        self.bias = nn.Parameter(torch.empty(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[T, C, H, W]`` to ``[T, O, H', W']``."""
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class CausalConv(nn.Module):
    """A convolution with three taps in time that never sees a later frame.

    All frames of a call are convolved at once, after a history that the previous call left:
    the last 2 frames, or 1 where the stride in time is 2. The form decides how it runs:
    ``stacked`` as a 2-D convolution over the three taps joined along the channels, ``conv3d``
    as it is; [T, C, H, W] in channels_last is [1, C, T, H, W] in channels_last_3d for free.
    """

    def __init__(
        self,
        name: str,
        channels_in: int,
        channels_out: int,
        size: tuple[int, int],
        kernel: int = 3,
        stride: int = 1,
        form: str = "stacked",
    ) -> None:
        """Fix the sizes.

        Args:
            name: of the state that holds the history.
            size: height and width of the frames.
            kernel: in space, odd; the frames keep their size.
            stride: in time.
            form: ``stacked`` or ``conv3d``; the latter has stride 1.
        """
        super().__init__()
        self.name, self.stride, self.form = name, stride, form
        self.padding = kernel // 2
        self.history_shape = (TAPS - stride, channels_in, *size)
        if form == "conv3d":
            shape = (channels_out, channels_in, TAPS, kernel, kernel)
        else:
            shape = (channels_out, TAPS * channels_in, kernel, kernel)
        self.weight = nn.Parameter(empty_channels_last(shape))
        self.bias = nn.Parameter(torch.empty(channels_out))

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Convolve the next frames of a stream.

        Args:
            x: ``[T, C, H, W]``, channels_last.
            states: its entry ``name`` is read, then overwritten.
        Returns:
            ``[T / stride, O, H, W]``, channels_last.
        """
        history = states[self.name]
        frames = torch.cat([history, x])
        y = self.convolve(frames)
        # Of the joined frames, as x may be shorter than the history.
        history.copy_(frames[-history.shape[0] :])
        return y

    def convolve(self, frames: Tensor) -> Tensor:
        """Convolve ``[T, C, H, W]``, history and all, to ``[(T - 3) / stride + 1, O, H, W]``."""
        padding = self.padding
        if self.form == "conv3d":
            video = frames.unsqueeze(0).transpose(1, 2)
            video = functional.conv3d(video, self.weight, self.bias, padding=(0, padding, padding))
            return video.transpose(1, 2).squeeze(0)
        end = frames.shape[0] - TAPS + 1
        taps = [frames[tap : tap + end : self.stride] for tap in range(TAPS)]
        return functional.conv2d(torch.cat(taps, dim=1), self.weight, self.bias, padding=padding)


def zero_histories(module: nn.Module, device: torch.device | str) -> dict[str, Tensor]:
    """Return the states of all causal convolutions inside ``module`` as they are before a stream.

    Each is ``[1 or 2, C, H, W]``, channels_last, in the dtype of the layer's weight.
    """
    return {
        layer.name: empty_channels_last(
            layer.history_shape, dtype=layer.weight.dtype, device=device
        ).zero_()
        for layer in module.modules()
        if isinstance(layer, CausalConv)
    }
