"""Candidates for the forms of the Wan VAE's layers, at the sizes of a preset."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from sdrt.engine.convs import FORMS, FUSED, SplitConv, channels_last, zero_histories
from sdrt.engine.preset.preset import Preset
from sdrt.engine.wan_vae.blocks import Attention, ResidualBlock, Upsample
from sdrt.engine.wan_vae.chain import fusable
from sdrt.engine.wan_vae.fused import (
    NOWHERE,
    POSITION,
    SPLIT_CHANNELS,
    FusedBlock,
    FusedSplitConv,
    FusedUpsample,
)
from sdrt.engine.wan_vae.layers import Layer, decoder_chain, encoder_chain
from sdrt.kernels.causal_conv import CHANNELS_IN, to_c8
from sdrt.kernels.dispatch import use_hopper
from sdrt.kernels.wide_attention import ANYWHERE, PRODUCTS

PLAIN = "conv2d"
"""The form of layers that are nothing but convolutions and what lies between them."""

Module = TypeVar("Module", bound=nn.Module)
Candidates = Mapping[str, Callable[[], object]]
Question = tuple[str, Hashable, Callable[[], Candidates]]
"""Name, what its answer depends on, and what makes the candidates."""


def largest_call(preset: Preset) -> int:
    """Return the most pixel frames that the Wan VAE takes or gives in one call."""
    return max(4 * preset.first_chunk_latent_frames - 3, preset.stream.chunk_frames)


def vae_questions(preset: Preset, device: torch.device, dtype: torch.dtype) -> Iterator[Question]:
    """Yield each layer with a choice of forms, in the steady phase."""
    config, stream = preset.wan_vae, preset.stream
    asker = _Asker(device, dtype, largest_call(preset))
    latents = stream.chunk_latent_frames
    if preset.encoder == "wan-vae":
        size, rate = (stream.height, stream.width), 1
        for index, layer in enumerate(encoder_chain(config)):
            frames = 4 * latents // rate
            if layer.kind == "residual":
                yield asker.ask(
                    f"encoder.downsamples.{index}", asker.block, layer, frames, size, rate
                )
                continue
            rate *= 2 if layer.kind == "temporal" else 1
            size = (size[0] // 2, size[1] // 2)
        yield from asker.middle("encoder", config.dim * config.dim_mult[-1], latents, size)
    if preset.decoder == "wan-vae":
        size, rate = (stream.latent_height, stream.latent_width), 4
        yield from asker.middle("decoder", config.dim * config.dim_mult[-1], latents, size)
        for index, layer in enumerate(decoder_chain(config)):
            name = f"decoder.upsamples.{index}"
            if layer.kind == "residual":
                yield asker.ask(name, asker.block, layer, 4 * latents // rate, size, rate)
                continue
            rate //= 2 if layer.kind == "temporal" else 1
            yield asker.ask(name, asker.upsample, layer, 4 * latents // rate, size, rate)
            size = (size[0] * 2, size[1] * 2)
        yield asker.ask(
            "decoder.head.2", asker.split, config.dim * config.dim_mult[0], 4 * latents, size
        )


class _Asker:
    """Makes candidates of one kind of layer."""

    def __init__(self, device: torch.device, dtype: torch.dtype, largest: int) -> None:
        self.device, self.dtype, self.largest = device, dtype, largest

    def ask(self, name: str, make: Callable[..., Candidates], *kind: Hashable) -> Question:
        """Return the question of a layer whose candidates ``make(*kind)`` gives."""
        return name, (make.__name__, *kind), partial(make, *kind)

    def middle(
        self, coder: str, channels: int, frames: int, size: tuple[int, int]
    ) -> Iterator[Question]:
        """Yield the questions of a residual block, attention and a residual block."""
        layer = Layer("residual", channels, channels)
        for place in (0, 2):
            yield self.ask(f"{coder}.middle.{place}", self.block, layer, frames, size, 4)
        yield self.ask(f"{coder}.middle.1", self.attention, channels, frames, size)

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
