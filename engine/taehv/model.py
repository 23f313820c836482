"""TAEHV, the small streaming autoencoder of Wan 2.1 latents: an encoder and a decoder stage."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from sdrt.engine.convs import channels_last, empty_channels_last
from sdrt.engine.how import NOTHING, How
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import TaehvConfig
from sdrt.engine.taehv.layers import (
    BLOCKS_PER_LEVEL,
    FramePool,
    MemoryBlock,
    decoder_layers,
    encoder_layers,
)
from sdrt.kernels.conv_relu_pool import conv_relu_pool
from sdrt.kernels.errors import SdrtError
from sdrt.kernels.relu_conv import relu_conv

FIRST, LAST = "taehv.encoder.first", "taehv.decoder.last"
"""Places: the layers of the full pictures, which can be fused into one kernel."""
FUSED = "triton"
"""Their implementation as such a kernel, which packages hold themselves."""
FIRST_LAYERS, LAST_LAYERS = 3, 2
"""How many these are: convolution, ReLU and pool of an encoder; ReLU and convolution."""
FUSED_CHANNELS = 64
"""Up to so many channels the fused kernels' weights fit into any card's shared memory."""


class TaehvError(SdrtError):
    """Sizes that TAEHV cannot have."""


class _Coder(PackageModule):
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

    def _run(self, x: Tensor, states: dict[str, Tensor], places: range) -> Tensor:
        layers = self._layers()
        for index in places:
            layer = layers[index]
            is_block = isinstance(layer, MemoryBlock)
            x = layer(x, states[f"{self.part}.{index}"]) if is_block else layer(x)
        return x


class TaehvEncoder(_Coder):
    """Pixels to latents, 8x smaller in space and 4x in time."""

    def __init__(
        self,
        config: TaehvConfig,
        height: int,
        width: int,
        frames: int,
        first: bool,
        how: How = NOTHING,
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
            how: place -> implementation: ``FIRST`` may be fused.
        Raises:
            TaehvError: sizes that do not divide.
        """
        super().__init__("encoder", encoder_layers(config), _sizes(height, width))
        if frames < 1 or (frames % 4 and not first):
            raise TaehvError(
                f"TAEHV encodes 4 frames to a latent: got {frames} frames a call, "
                "expected a multiple of 4 (any number in a stream's first call)"
            )
        self.padding = -frames % 4
        self.fused = how.get(FIRST) == FUSED

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
        rest = range(FIRST_LAYERS, len(self._layers()))
        return self._run(self.first_layers(pixels), states, rest).float()

    def first_layers(self, pixels: Tensor) -> Tensor:
        """Map pixels ``[F, 3, H, W]``, F even, to ``[F / 2, C, H, W]``."""
        if not self.fused:
            return self._run(pixels, {}, range(FIRST_LAYERS))
        layers = self._layers()
        conv, pool = cast(nn.Conv2d, layers[0]), cast(FramePool, layers[2])
        assert conv.bias is not None
        return conv_relu_pool(pixels, conv.weight, conv.bias, pool.conv.weight)


class TaehvDecoder(_Coder):
    """Latents to pixels, 8x larger in space and 4x in time."""

    def __init__(
        self,
        config: TaehvConfig,
        height: int,
        width: int,
        latent_frames: int,
        first: bool,
        how: How = NOTHING,
    ) -> None:
        """Fix the sizes.

        Args:
            config: the widths.
            height: rows of a pixel frame, a multiple of 8.
            width: columns of a pixel frame, a multiple of 8.
            latent_frames: latents of one call.
            first: whether this is a stream's first call, whose first latent stands for one frame.
            how: place -> implementation: ``LAST`` may be fused.
        Raises:
            TaehvError: sizes that do not divide, or no latents.
        """
        super().__init__("decoder", decoder_layers(config), _sizes(height, width)[::-1])
        if latent_frames < 1:
            raise TaehvError(
                f"TAEHV decodes latents: got {latent_frames} a call, expected 1 or more"
            )
        self.dropped = 3 if first else 0
        self.fused = how.get(LAST) == FUSED

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
        x = self._run(x, states, range(len(self._layers()) - LAST_LAYERS))
        return self.last_layers(x)[self.dropped :]

    def last_layers(self, x: Tensor) -> Tensor:
        """Map ``[T, C, H, W]`` to pixels ``[T, 3, H, W]``."""
        layers = self._layers()
        if not self.fused:
            return self._run(x, {}, range(len(layers) - LAST_LAYERS, len(layers)))
        conv = cast(nn.Conv2d, layers[-1])
        assert conv.bias is not None
        return relu_conv(x, conv.weight, conv.bias)


def public_shapes(config: TaehvConfig) -> dict[str, tuple[int, ...]]:
    """Return the parameter names and shapes of the public checkpoint (taew2_1 by default)."""
    with torch.device("meta"):
        coders = nn.ModuleDict(
            {"encoder": encoder_layers(config), "decoder": decoder_layers(config)}
        )
    return {name: tuple(tensor.shape) for name, tensor in coders.state_dict().items()}


def from_public(
    config: TaehvConfig, tensors: Mapping[str, Tensor], how: How = NOTHING
) -> dict[str, Tensor]:
    """Return the weights of both stages from a public checkpoint.

    The names stay: ``encoder.*`` are ``TaehvEncoder``'s state dict, ``decoder.*`` are
    ``TaehvDecoder``'s. Convolution weights come channels_last, as the modules hold them. Where a
    frame split has more outputs than the modules (checkpoints that serve two frame rates), its
    last outputs are kept.

    Args:
        config: the widths.
        tensors: the public checkpoint, complete.
        how: as the modules get it; their weights lie the same whatever it says.
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
