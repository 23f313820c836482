"""TAEHV, the small streaming autoencoder of Wan 2.1 latents: an encoder and a decoder stage."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdrt.engine.causal_conv import channels_last, empty_channels_last
from sdrt.engine.config import TaehvConfig
from sdrt.engine.stage import StageModule

BLOCKS_PER_LEVEL = 3
ENCODER_FRAME_STRIDES = (2, 2, 1)
"""Frames that each level of the encoder joins; the decoder splits in the opposite order."""


class TaehvError(ValueError):
    """Sizes that TAEHV cannot have."""


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


def _encoder_layers(config: TaehvConfig) -> nn.ModuleList:
    """Return the layers at the places that the public parameter names count."""
    width = config.encoder_width
    layers: list[nn.Module] = [_conv(3, width), nn.ReLU()]
    for frames in ENCODER_FRAME_STRIDES:
        layers += [FramePool(width, frames), _conv(width, width, stride=2, bias=False)]
        layers += _blocks(width)
    return nn.ModuleList([*layers, _conv(width, config.latent_channels)])


def _decoder_layers(config: TaehvConfig) -> nn.ModuleList:
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


class _Coder(StageModule):
    """What encoder and decoder share: running the layers, and the memory blocks' states."""

    def __init__(self, part: str, layers: nn.ModuleList, sizes: list[tuple[int, int]]) -> None:
        """Keep the layers.

        Args:
            part: what the public parameter names start with.
            layers: of that part.
            sizes: height and width at the memory blocks, level by level.
        """
        super().__init__()
        self.part = part
        self.sizes = sizes
        self.add_module(part, layers)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = channels_last(parameter.data)

    def _layers(self) -> nn.ModuleList:
        layers = self.get_submodule(self.part)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """Return what each memory block saw last: zeros ``[1, C, H, W]``, channels_last.

        The names are those of the blocks and the dtype is the parameters'. Both phases have the
        same states, whatever their number of frames.
        """
        blocks = [(i, b) for i, b in enumerate(self._layers()) if isinstance(b, MemoryBlock)]
        states = {}
        for order, (index, block) in enumerate(blocks):
            dtype = next(block.parameters()).dtype
            shape = (1, block.channels, *self.sizes[order // BLOCKS_PER_LEVEL])
            state = empty_channels_last(shape, dtype=dtype, device=device).zero_()
            states[f"{self.part}.{index}"] = state
        return states

    def _run(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        for index, layer in enumerate(self._layers()):
            is_block = isinstance(layer, MemoryBlock)
            x = layer(x, states[f"{self.part}.{index}"]) if is_block else layer(x)
        return x


class TaehvEncoder(_Coder):
    """Pixels to latents, 8x smaller in space and 4x in time."""

    def __init__(
        self, config: TaehvConfig, height: int, width: int, frames: int, first: bool
    ) -> None:
        """Fix the sizes.

        Args:
            config: the widths.
            height: rows of a pixel frame, a multiple of 8.
            width: columns of a pixel frame, a multiple of 8.
            frames: pixel frames of one call. A stream's first call may have any number: its very
                first frame is repeated in front up to a multiple of 4. The decoder then shows the
                repeats too: 5 frames first and 4 a call later come out 3 frames late, 8 first
                and 4 later come out in step (the decoder drops 3).
            first: whether this is a stream's first call.
        Raises:
            TaehvError: sizes that do not divide.
        """
        super().__init__("encoder", _encoder_layers(config), _sizes(height, width))
        if frames < 1 or (frames % 4 and not first):
            raise TaehvError(
                f"TAEHV encodes 4 frames to a latent: got {frames} frames a call, "
                "expected a multiple of 4 (any number in a stream's first call)"
            )
        self.padding = -frames % 4

    def forward(self, pixels: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Encode the next frames of a stream.

        Args:
            pixels: ``[F, 3, H, W]`` in [0, 1], channels_last, in the parameters' dtype.
            states: as ``states()`` gives them; overwritten.
        Returns:
            Latents ``[ceil(F / 4), C, H / 8, W / 8]``, float32.
        """
        if self.padding:
            pixels = torch.cat([pixels[:1]] * self.padding + [pixels])
        return self._run(pixels, states).float()


class TaehvDecoder(_Coder):
    """Latents to pixels, 8x larger in space and 4x in time."""

    def __init__(
        self, config: TaehvConfig, height: int, width: int, latent_frames: int, first: bool
    ) -> None:
        """Fix the sizes.

        Args:
            config: the widths.
            height: rows of a pixel frame, a multiple of 8.
            width: columns of a pixel frame, a multiple of 8.
            latent_frames: latents of one call.
            first: whether this is a stream's first call, whose first latent stands for one frame.
        Raises:
            TaehvError: sizes that do not divide, or no latents.
        """
        super().__init__("decoder", _decoder_layers(config), _sizes(height, width)[::-1])
        if latent_frames < 1:
            raise TaehvError(
                f"TAEHV decodes latents: got {latent_frames} a call, expected 1 or more"
            )
        self.dropped = 3 if first else 0

    def forward(self, latents: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Decode the next latents of a stream.

        Args:
            latents: ``[N, C, H / 8, W / 8]``, float32; bent smoothly into (-3, 3).
            states: as ``states()`` gives them; overwritten.
        Returns:
            Pixels ``[4N, 3, H, W]``, in a stream's first call ``[4N - 3, 3, H, W]``; about
            [0, 1] but not clamped, channels_last, in the parameters' dtype.
        """
        bent = torch.tanh(latents / 3) * 3
        dtype = next(iter(states.values())).dtype  # the parameters'
        x = bent.to(dtype, memory_format=torch.channels_last)
        return self._run(x, states)[self.dropped :]


def public_shapes(config: TaehvConfig) -> dict[str, tuple[int, ...]]:
    """Return the parameter names and shapes of the public checkpoint (taew2_1 by default)."""
    with torch.device("meta"):
        coders = nn.ModuleDict(
            {"encoder": _encoder_layers(config), "decoder": _decoder_layers(config)}
        )
    return {name: tuple(tensor.shape) for name, tensor in coders.state_dict().items()}


def from_public(config: TaehvConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of both stages from a public checkpoint.

    The names stay: ``encoder.*`` are ``TaehvEncoder``'s state dict, ``decoder.*`` are
    ``TaehvDecoder``'s. Convolution weights come channels_last, as the modules hold them. Where a
    frame split has more outputs than the modules (checkpoints that serve two frame rates), its
    last outputs are kept.

    Args:
        config: the widths.
        tensors: the public checkpoint, complete.
    """
    weights = {}
    for name, shape in public_shapes(config).items():
        weight = tensors[name][-shape[0] :]
        weights[name] = channels_last(weight) if weight.ndim == 4 else weight
    return weights


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return height and width at the levels of the encoder."""
    if height % 8 or width % 8:
        raise TaehvError(f"TAEHV takes multiples of 8: got height {height}, width {width}")
    return [(height // scale, width // scale) for scale in (2, 4, 8)]
