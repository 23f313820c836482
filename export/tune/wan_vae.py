"""Candidates for the forms of the Wan VAE's layers, at the sizes of a preset."""

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from sdrt.engine.convs import FORMS, FUSED, SplitConv, channels_last, zero_histories
from sdrt.engine.preset.preset import Preset, WanVaeConfig
from sdrt.engine.wan_vae.blocks import Attention, ResidualBlock, Upsample
from sdrt.engine.wan_vae.chain import fusable
from sdrt.engine.wan_vae.coder import WanVaeCoder, largest_call
from sdrt.engine.wan_vae.fused import (
    NOWHERE,
    POSITION,
    SPLIT_CHANNELS,
    FusedBlock,
    FusedSplitConv,
    FusedUpsample,
)
from sdrt.engine.wan_vae.layers import Layer, decoder_chain, encoder_chain
from sdrt.engine.wan_vae.model import PLACE
from sdrt.export.tune.tunable import PLAIN, Candidates, Tunable
from sdrt.kernels.causal_conv import CHANNELS_IN, to_c8
from sdrt.kernels.dispatch import use_hopper
from sdrt.kernels.wide_attention import ANYWHERE, PRODUCTS

Module = TypeVar("Module", bound=nn.Module)


def wan_vae_tunables(preset: Preset, device: torch.device, dtype: torch.dtype) -> Iterator[Tunable]:
    """Yield each layer with a choice of forms, in the steady phase."""
    layers = _Layers(device, dtype, largest_call(preset))
    if isinstance(preset.input_coder, WanVaeCoder):
        yield from _encoder_tunables(preset, layers)
    if isinstance(preset.output_coder, WanVaeCoder):
        yield from _decoder_tunables(preset, layers)


def _encoder_tunables(preset: Preset, layers: "_Layers") -> Iterator[Tunable]:
    config, frames = preset.wan_vae, preset.chunk_frames
    size, rate = (preset.stream.height, preset.stream.width), 1
    tunable = partial(layers.tunable, WanVaeCoder.encoder_stage)
    for index, layer in enumerate(encoder_chain(config)):
        if layer.kind == "residual":
            name = f"encoder.downsamples.{index}"
            yield tunable(name, layers.block, layer, frames // rate, size, rate)
            continue
        rate *= 2 if layer.kind == "temporal" else 1
        size = (size[0] // 2, size[1] // 2)
    yield from _middle(tunable, layers, "encoder.middle", config, frames // rate, size)


def _decoder_tunables(preset: Preset, layers: "_Layers") -> Iterator[Tunable]:
    config, frames = preset.wan_vae, preset.chunk_frames
    size, rate = preset.latent_size, WanVaeCoder.time
    tunable = partial(layers.tunable, WanVaeCoder.decoder_stage)
    yield from _middle(tunable, layers, "decoder.middle", config, frames // rate, size)
    for index, layer in enumerate(decoder_chain(config)):
        name = f"decoder.upsamples.{index}"
        if layer.kind == "residual":
            yield tunable(name, layers.block, layer, frames // rate, size, rate)
            continue
        rate //= 2 if layer.kind == "temporal" else 1
        yield tunable(name, layers.upsample, layer, frames // rate, size, rate)
        size = (size[0] * 2, size[1] * 2)
    channels = config.dim * config.dim_mult[0]
    yield tunable("decoder.head.2", layers.split, channels, frames, size)


def _middle(
    tunable: Callable[..., Tunable],
    layers: "_Layers",
    name: str,
    config: WanVaeConfig,
    latent_frames: int,
    size: tuple[int, int],
) -> Iterator[Tunable]:
    """Yield a residual block, attention and a residual block."""
    channels = config.dim * config.dim_mult[-1]
    layer = Layer("residual", channels, channels)
    for place in (0, 2):
        arguments = (layer, latent_frames, size, WanVaeCoder.time)
        yield tunable(f"{name}.{place}", layers.block, *arguments)
    yield tunable(f"{name}.1", layers.attention, channels, latent_frames, size)


class _Layers:
    """Makes the candidates of each kind of layer."""

    def __init__(self, device: torch.device, dtype: torch.dtype, largest: int) -> None:
        self.device, self.dtype, self.largest = device, dtype, largest

    def tunable(
        self, stage: str, layer: str, make: Callable[..., Candidates], *kind: Hashable
    ) -> Tunable:
        """Return a layer of a stage, whose candidates ``make(*kind)`` gives."""
        place, whole_kind = f"{PLACE}.{layer}", (make.__name__, *kind)
        return Tunable(place, stage, whole_kind, partial(make, *kind))

    def block(self, layer: Layer, frames: int, size: tuple[int, int], rate: int) -> Candidates:
        """Return the forms of a residual block of ``frames`` frames."""
        widths = (layer.channels_in, layer.channels_out)
        x = self._noise(frames, layer.channels_in, *size)
        found: dict[str, Callable[[], object]] = {}
        for form in FORMS:
            block = self._ready(ResidualBlock("block", *widths, size, {"block": form}))
            found[form] = partial(block, x, zero_histories(block, self.device))
        if use_hopper(x) and fusable(layer, False):
            fused = self._ready(FusedBlock("block", *widths, size, rate, self.largest))
            states = self._states(fused)
            alike = widths[0] == widths[1]
            found[FUSED] = partial(
                fused, x, states, alike, fused.target(states) if alike else NOWHERE, True
            )
        return found

    def upsample(self, layer: Layer, frames: int, size: tuple[int, int], rate: int) -> Candidates:
        """Return the forms of an upsampling layer that gives ``frames`` frames."""
        temporal = layer.kind == "temporal"
        x = self._noise(frames // (2 if temporal else 1), layer.channels_in, *size)
        arguments = ("up", layer.channels_in, size, temporal, False)
        plain = self._ready(Upsample(*arguments))
        found: dict[str, Callable[[], object]] = {
            PLAIN: partial(plain, x, zero_histories(plain, self.device))
        }
        if use_hopper(x) and fusable(layer, True):
            fused = self._ready(FusedUpsample(*arguments, rate))
            found[FUSED] = partial(fused, x, self._states(fused), NOWHERE)
        return found

    def split(self, channels: int, frames: int, size: tuple[int, int]) -> Candidates:
        """Return the forms of the last convolution, to pictures."""
        x = self._noise(frames, channels, *size)
        arguments = ("last", channels, 3, size)
        plain = self._ready(SplitConv(*arguments))
        found: dict[str, Callable[[], object]] = {
            PLAIN: partial(plain, x, zero_histories(plain, self.device))
        }
        if use_hopper(x) and len(plain.weight) == SPLIT_CHANNELS and channels % CHANNELS_IN == 0:
            fused = self._ready(FusedSplitConv(*arguments))
            found[FUSED] = partial(fused, to_c8(x), zero_histories(fused, self.device))
        return found

    def attention(self, channels: int, frames: int, size: tuple[int, int]) -> Candidates:
        """Return the implementations of the attention over a frame's pixels."""
        x = self._noise(frames, channels, *size)
        return {
            name: partial(self._ready(Attention(channels, name)), x)
            for name in (ANYWHERE, PRODUCTS)
        }

    def _noise(self, *shape: int) -> Tensor:
        return channels_last(torch.randn(shape, device=self.device, dtype=self.dtype))

    def _ready(self, module: Module) -> Module:
        """Return a module on the device with noise for weights; zeros would run faster."""
        module = module.to(self.device, self.dtype)
        for parameter in module.parameters():
            parameter.data.normal_(0, 0.02)
        return module

    def _states(self, module: nn.Module) -> dict[str, Tensor]:
        position = torch.zeros(1, dtype=torch.int64, device=self.device)
        return zero_histories(module, self.device) | {POSITION: position}
