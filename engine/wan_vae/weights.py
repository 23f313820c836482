"""The Wan 2.1 VAE's public checkpoint: its names and shapes, and the way to the modules' own."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sdrt.engine.convs import (
    FUSED,
    Forms,
    block_of,
    channels_last,
    layer_form,
    pack_split_weight,
    pack_weight,
)
from sdrt.engine.how import NOTHING, How, below
from sdrt.engine.preset.sections import WanVaeConfig
from sdrt.engine.wan_vae.blocks import FEW_CHANNELS
from sdrt.engine.wan_vae.layers import decoder_chain, encoder_chain
from sdrt.engine.wan_vae.model import PLACE
from sdrt.kernels import causal_conv
from sdrt.kernels.causal_conv import pack_upsample_weight


def public_shapes(config: WanVaeConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of the public checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def norm_conv(name: str, places: tuple[int, int], outputs: int, inputs: int) -> None:
        shapes[f"{name}.{places[0]}.gamma"] = (inputs, 1, 1, 1)
        conv(f"{name}.{places[1]}", outputs, inputs, 3, 3, 3)

    def residual(name: str, outputs: int, inputs: int) -> None:
        norm_conv(f"{name}.residual", (0, 2), outputs, inputs)
        norm_conv(f"{name}.residual", (3, 6), outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.shortcut", outputs, inputs, 1, 1, 1)

    def middle(name: str, channels: int) -> None:
        residual(f"{name}.0", channels, channels)
        shapes[f"{name}.1.norm.gamma"] = (channels, 1, 1)
        conv(f"{name}.1.to_qkv", 3 * channels, channels, 1, 1)
        conv(f"{name}.1.proj", channels, channels, 1, 1)
        residual(f"{name}.2", channels, channels)

    z_dim, widths = config.z_dim, [config.dim * multiple for multiple in config.dim_mult]
    conv("encoder.conv1", config.dim, 3, 3, 3, 3)
    for index, (kind, inputs, outputs) in enumerate(encoder_chain(config)):
        name = f"encoder.downsamples.{index}"
        if kind == "residual":
            residual(name, outputs, inputs)
            continue
        conv(f"{name}.resample.1", outputs, inputs, 3, 3)
        if kind == "temporal":
            conv(f"{name}.time_conv", inputs, inputs, 3, 1, 1)
    middle("encoder.middle", widths[-1])
    norm_conv("encoder.head", (0, 2), 2 * z_dim, widths[-1])
    conv("conv1", 2 * z_dim, 2 * z_dim, 1, 1, 1)
    conv("conv2", z_dim, z_dim, 1, 1, 1)
    conv("decoder.conv1", widths[-1], z_dim, 3, 3, 3)
    middle("decoder.middle", widths[-1])
    for index, (kind, inputs, outputs) in enumerate(decoder_chain(config)):
        name = f"decoder.upsamples.{index}"
        if kind == "residual":
            residual(name, outputs, inputs)
            continue
        conv(f"{name}.resample.1", outputs, inputs, 3, 3)
        if kind == "temporal":
            conv(f"{name}.time_conv", 2 * inputs, inputs, 3, 1, 1)
    norm_conv("decoder.head", (0, 2), 3, widths[0])
    return shapes


def from_public(
    config: WanVaeConfig, tensors: Mapping[str, Tensor], how: How = NOTHING
) -> dict[str, Tensor]:
    """Return the parameters of both modules: ``encoder.*`` and ``decoder.*`` with ``conv2.*``.

    Most keep their public names. Weights of convolutions come in the strides they run with.
    The public ``conv1`` is 1x1x1 and follows the encoder's last convolution directly: the two
    become one, of which only the posterior's mean is kept.

    Args:
        tensors: the public checkpoint, complete.
        how: as the modules get it.
    Raises:
        CausalConvError: ``how`` names a form that does not exist.
    """
    forms = below(how, PLACE)
    tensors = {**tensors, **_fused_head(config, tensors)}
    names = [name for name in public_shapes(config) if not name.startswith("conv1.")]
    return {name: _arrange(name, tensors[name], forms) for name in names}


def _fused_head(config: WanVaeConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean = slice(0, config.z_dim)
    weight, bias = tensors["encoder.head.2.weight"], tensors["encoder.head.2.bias"]
    mix = tensors["conv1.weight"][mean].flatten(1).float()
    fused_weight = torch.tensordot(mix, weight.float(), dims=1)
    fused_bias = mix @ bias.float() + tensors["conv1.bias"][mean].float()
    return {
        "encoder.head.2.weight": fused_weight.to(weight.dtype),
        "encoder.head.2.bias": fused_bias.to(bias.dtype),
    }


def _arrange(name: str, tensor: Tensor, forms: Forms) -> Tensor:
    """Return one public tensor in the shape and strides of the modules' parameter."""
    layer, leaf = name.rsplit(".", 1)
    if leaf != "weight":
        return tensor.flatten()
    if layer.endswith((".to_qkv", ".proj")):
        return tensor.flatten(1)
    fused = (forms or {}).get(block_of(layer)) == FUSED
    if tensor.ndim == 4:
        return pack_upsample_weight(tensor) if fused else channels_last(tensor)
    match tuple(tensor.shape[2:]):
        case (1, 1, 1):
            return channels_last(tensor.squeeze(2))
        case (3, 1, 1):
            return pack_weight(tensor, "stacked")
        case _ if tensor.shape[0] <= FEW_CHANNELS:
            split = pack_split_weight(tensor)
            return causal_conv.pack_weight(split) if fused else split
        case _ if fused:
            return causal_conv.pack_weight(tensor)
        case _:
            return pack_weight(tensor, layer_form(layer, tensor.shape[1], forms))
