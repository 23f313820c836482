"""The encoder's and decoder's chain of layers, each in its form, and what they hand on."""

from typing import cast

from torch import Tensor, nn

from sdrt.engine.convs import FUSED, Forms, SplitConv
from sdrt.engine.preset.preset import WanVaeConfig
from sdrt.engine.wan_vae.blocks import (
    FEW_CHANNELS,
    Downsample,
    Head,
    ResidualBlock,
    RmsNorm,
    Upsample,
    causal_conv,
)
from sdrt.engine.wan_vae.fused import (
    CHANNELS_OUT,
    NOWHERE,
    FusedBlock,
    FusedSplitConv,
    FusedUpsample,
    NormTarget,
    empty_frames,
)
from sdrt.engine.wan_vae.layers import Layer, decoder_chain, encoder_chain
from sdrt.kernels.causal_conv import CHANNELS_IN

Size = tuple[int, int]


class Chain(nn.ModuleList):
    """Layers one after another; the parameter names count them."""

    @property
    def adds_bias(self) -> bool:
        """Whether the first layer can add the bias of the convolution before it."""
        first = self[0]
        return isinstance(first, FusedBlock) and first.shortcut is None

    def forward(
        self,
        x: Tensor,
        states: dict[str, Tensor],
        head: Head | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Map ``[T, C, H, W]`` to what the last layer, or the head, makes of it.

        A fused layer also writes the norm of its result to where the next fused block, or the
        head, reads it.

        Args:
            bias: ``[C]``, that ``x`` lacks; only where the chain ``adds_bias``.
        """
        normed, layers = False, list(self)
        for index, layer in enumerate(layers):
            if not isinstance(layer, FusedBlock | FusedUpsample):
                x, normed = layer(x, states), False
                continue
            following = layers[index + 1] if index + 1 < len(layers) else None
            target, blocked = NOWHERE, False
            match following:
                case FusedBlock():
                    target = following.target(states)
                case FusedUpsample():
                    blocked = following.time_conv is None
                case None if head is not None and isinstance(layer, FusedBlock):
                    fused = isinstance(head["2"], FusedSplitConv)
                    frames = empty_frames(x, len(x), layer.channels_out, x.shape[2:], fused)
                    target, blocked = NormTarget(cast(RmsNorm, head["0"]).gamma, frames), None
            if isinstance(layer, FusedBlock):
                result = layer(x, states, normed, target, blocked, bias)
                if result is None:
                    assert head is not None
                    return head["2"](target.frames, states)
                x = result
            else:
                x = layer(x, states, target)
            normed, bias = target is not NOWHERE, None
        return x if head is None else head(x, states)


def encoder_layers(
    config: WanVaeConfig, size: Size, first: bool, forms: Forms, largest_call: int
) -> tuple[Chain, Size]:
    """Return ``encoder.downsamples`` and the size of the pictures that it gives."""
    chain, rate = Chain(), 1
    for index, layer in enumerate(encoder_chain(config)):
        name = f"encoder.downsamples.{index}"
        if layer.kind == "residual":
            chain.append(_residual(name, layer, size, forms, rate, largest_call))
            continue
        temporal = layer.kind == "temporal"
        chain.append(Downsample(name, layer.channels_in, size, temporal, first))
        rate *= 2 if temporal else 1
        size = (size[0] // 2, size[1] // 2)
    return chain, size


def decoder_layers(
    config: WanVaeConfig, size: Size, first: bool, forms: Forms, largest_call: int
) -> tuple[Chain, Size]:
    """Return ``decoder.upsamples`` and the size of the pictures that it gives."""
    chain, rate = Chain(), 4
    for index, layer in enumerate(decoder_chain(config)):
        name = f"decoder.upsamples.{index}"
        if layer.kind == "residual":
            chain.append(_residual(name, layer, size, forms, rate, largest_call))
            continue
        temporal = layer.kind == "temporal"
        rate //= 2 if temporal else 1
        if _is_fused(name, layer, forms):
            arguments = (name, layer.channels_in, size, temporal, first, rate)
            chain.append(FusedUpsample(*arguments))
        else:
            chain.append(Upsample(name, layer.channels_in, size, temporal, first))
        size = (size[0] * 2, size[1] * 2)
    return chain, size


def make_head(name: str, channels_in: int, channels_out: int, size: Size, forms: Forms) -> Head:
    """Return the last norm and convolution, to latents or to pictures."""
    layer = f"{name}.2"
    if channels_out > FEW_CHANNELS:
        return Head(channels_in, causal_conv(layer, channels_in, channels_out, size, forms))
    kind = FusedSplitConv if (forms or {}).get(layer) == FUSED else SplitConv
    return Head(channels_in, kind(layer, channels_in, channels_out, size))


def fusable(layer: Layer, upsamples: bool) -> bool:
    """Return whether a layer has a fused form."""
    if layer.kind != "residual" and not upsamples:
        return False
    return layer.channels_out in CHANNELS_OUT and layer.channels_in % CHANNELS_IN == 0


def _is_fused(name: str, layer: Layer, forms: Forms) -> bool:
    wanted = (forms or {}).get(name) == FUSED
    assert not wanted or fusable(layer, name.startswith("decoder.")), f"{name} has no fused form"
    return wanted


def _residual(
    name: str, layer: Layer, size: Size, forms: Forms, rate: int, largest_call: int
) -> nn.Module:
    if _is_fused(name, layer, forms):
        return FusedBlock(name, layer.channels_in, layer.channels_out, size, rate, largest_call)
    return ResidualBlock(name, layer.channels_in, layer.channels_out, size, forms)
