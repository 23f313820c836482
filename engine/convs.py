"""Convolutions over frames that continue across calls, in the layouts that CUDA runs fast."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdrt.kernels.errors import SdrtError
from sdrt.kernels.norm_silu_taps import norm_silu_taps

TAPS = 3
"""Frames that a causal convolution sees: the current one and the two before it."""

FORMS = ("stacked", "conv3d")
FUSED = "fused"
"""The form of layers and blocks of them that one kernel runs, with norms or what else lies near."""

Forms = Mapping[str, str] | None
"""Layer name -> form, for the layers that differ from the default."""

ALIGNMENT = 8
"""Channels that a tensor-core convolution reads at once: others fall to a slow kernel (1.4 ms
instead of 0.2 for the encoder's first layer on an H200), so stacked taps are filled up to it."""


class CausalConvError(SdrtError):
    """A form that does not exist."""


def conv_form(channels_in: int) -> str:
    """Return the form in which a 3x3x3 causal convolution is faster.

    Measured on an H200 in bf16 with as many channels out as in, stacked against conv3d:
    1.38 and 3.4 ms (96 channels, 4x480x832), 1.59 and 1.25 ms (192 channels, 4x240x416),
    0.54 and 0.72 ms (384 channels, 2x120x208).
    """
    return "conv3d" if 96 < channels_in < 384 else "stacked"


def block_of(name: str) -> str:
    """Return the name of the block that a convolution is part of."""
    for place in (".residual.", ".resample.", ".time_conv"):
        name = name.partition(place)[0]
    return name


def layer_form(name: str, channels_in: int, forms: Forms) -> str:
    """Return the form of the layer ``name``: what ``forms`` says, else ``conv_form``'s choice.

    ``forms`` names convolutions, or blocks of them.

    Raises:
        CausalConvError: ``forms`` names one that does not exist.
    """
    chosen = forms or {}
    form = chosen.get(name) or chosen.get(block_of(name)) or conv_form(channels_in)
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


def pack_split_weight(weight: Tensor) -> Tensor:
    """Return a public ``[O, C, 3, kh, kw]`` weight as ``SplitConv`` holds it, taps outermost."""
    taps = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
    return channels_last(functional.pad(taps, (0,) * 7 + (-len(taps) % ALIGNMENT,)))


def pack_weight(weight: Tensor, form: str) -> Tensor:
    """Return a public ``[O, C, 3, kh, kw]`` weight as ``CausalConv`` holds it.

    Stacked: ``[O, 3C, kh, kw]`` with the oldest frame's channels first, and zeros up to a
    multiple of ``ALIGNMENT``. Conv3d: the same shape.
    """
    if form == "stacked":
        weight = weight.transpose(1, 2).flatten(1, 2)
        weight = functional.pad(weight, (0, 0, 0, 0, 0, -weight.shape[1] % ALIGNMENT))
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


class History(nn.Module):
    """A layer with a state of its own that continues from call to call."""

    name: str
    history_shape: tuple[int, ...]
    weight: nn.Parameter

    def zero_history(self, device: torch.device | str) -> Tensor:
        """Return the state before a stream: ``[1 or 2, C, H, W]``, channels_last, zeros."""
        shape, dtype = self.history_shape, self.weight.dtype
        return empty_channels_last(shape, dtype=dtype, device=device).zero_()


class CausalConv(History):
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
            self.filler = -TAPS * channels_in % ALIGNMENT
            shape = (channels_out, TAPS * channels_in + self.filler, kernel, kernel)
        self.weight = nn.Parameter(empty_channels_last(shape))
        self.bias = nn.Parameter(torch.empty(channels_out))

    def forward(self, x: Tensor, states: dict[str, Tensor], biased: bool = True) -> Tensor:
        """Convolve the next frames of a stream.

        Args:
            x: ``[T, C, H, W]``, channels_last.
            states: its entry ``name`` is read, then overwritten.
            biased: add the bias; without, the next layer does.
        Returns:
            ``[T / stride, O, H, W]``, channels_last.
        """
        history = states[self.name]
        frames = torch.cat([history, x])
        y = self.convolve(self.taps(frames), self.bias if biased else None)
        # Of the joined frames, as x may be shorter than the history.
        history.copy_(frames[-history.shape[0] :])
        return y

    def normed_taps(
        self, x: Tensor, gamma: Tensor, states: dict[str, Tensor], bias: Tensor | None = None
    ) -> Tensor:
        """Return what :meth:`convolve` takes, of RMS norm and SiLU of the next frames.

        Args:
            x: ``[T, C, H, W]``, channels_last; gamma: ``[C]``, the norm's.
            states: its entry ``name`` is read, then overwritten.
            bias: ``[C]``, of the convolution that made ``x`` without it.
        """
        return norm_silu_taps(x, gamma, states[self.name], bias, self.form == "stacked")

    def taps(self, frames: Tensor) -> Tensor:
        """Return what :meth:`convolve` takes, of frames ``[T, C, H, W]``, history and all."""
        if self.form == "conv3d":
            return frames
        end = frames.shape[0] - TAPS + 1
        taps = [frames[tap : tap + end : self.stride] for tap in range(TAPS)]
        if self.filler:
            taps.append(taps[0].new_zeros(()).expand(len(taps[0]), self.filler, *frames.shape[2:]))
        return torch.cat(taps, dim=1)

    def convolve(self, taps: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve taps to ``[(T - 3) / stride + 1, O, H, W]``, T counted with the history."""
        padding = self.padding
        if self.form == "conv3d":
            video = taps.unsqueeze(0).transpose(1, 2)
            video = functional.conv3d(video, self.weight, bias, padding=(0, padding, padding))
            return video.transpose(1, 2).squeeze(0)
        return functional.conv2d(taps, self.weight, bias, padding=padding)


class SplitConv(History):
    """A causal convolution to a few channels: each frame meets the three taps' kernels at once.

    The taps' results are then added up over time. Every frame is read once instead of three
    times, which is what such a layer's time goes to; the history holds results, not inputs.
    """

    def __init__(
        self, name: str, channels_in: int, channels_out: int, size: tuple[int, int]
    ) -> None:
        """Fix the sizes; ``name`` is that of the state."""
        super().__init__()
        self.name, self.channels_out = name, channels_out
        partial = TAPS * channels_out
        partial += -partial % ALIGNMENT
        self.history_shape = (TAPS - 1, partial, *size)
        self.weight = nn.Parameter(empty_channels_last((partial, channels_in, 3, 3)))
        self.bias = nn.Parameter(torch.empty(channels_out))

    def products(self, x: Tensor) -> Tensor:
        """Return every tap's results for each frame by itself, ``[T, 3 O and fill, H, W]``."""
        return functional.conv2d(x, self.weight, padding=1)

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Convolve the next frames ``[T, C, H, W]`` of a stream to ``[T, O, H, W]``."""
        history = states[self.name]
        frames = torch.cat([history, self.products(x)])
        y = self.bias.float().view(-1, 1, 1)
        for tap in range(TAPS):
            first = tap * self.channels_out
            y = y + frames[tap : tap + len(x), first : first + self.channels_out].float()
        history.copy_(frames[-history.shape[0] :])
        return y.to(x.dtype)


def zero_histories(module: nn.Module, device: torch.device | str) -> dict[str, Tensor]:
    """Return the states of all causal convolutions in ``module``, as they are before a stream."""
    return {
        layer.name: layer.zero_history(device)
        for layer in module.modules()
        if isinstance(layer, History)
    }
