"""Which layers the Wan VAE's encoder and decoder are made of."""

from itertools import pairwise
from typing import NamedTuple

from sdrt.engine.preset.preset import WanVaeConfig


class Layer(NamedTuple):
    """One entry of the encoder's or decoder's chain."""

    kind: str
    """``residual``, or how it resamples: ``spatial`` or ``temporal`` (space and time)."""
    channels_in: int
    channels_out: int


def encoder_chain(config: WanVaeConfig) -> list[Layer]:
    """Return the layers of ``encoder.downsamples`` in order."""
    widths = [config.dim * multiple for multiple in (1, *config.dim_mult)]
    chain = []
    for level, (inputs, width) in enumerate(pairwise(widths)):
        chain.append(Layer("residual", inputs, width))
        chain += [Layer("residual", width, width)] * (config.num_res_blocks - 1)
        if level < len(config.temporal_downsample):
            kind = "temporal" if config.temporal_downsample[level] else "spatial"
            chain.append(Layer(kind, width, width))
    return chain


def decoder_chain(config: WanVaeConfig) -> list[Layer]:
    """Return the layers of ``decoder.upsamples`` in order."""
    widths = [config.dim * multiple for multiple in reversed(config.dim_mult)]
    upsample = config.temporal_downsample[::-1]
    chain, inputs = [], widths[0]
    for level, width in enumerate(widths):
        chain.append(Layer("residual", inputs, width))
        chain += [Layer("residual", width, width)] * config.num_res_blocks
        if level < len(upsample):
            inputs = width // 2
            chain.append(Layer("temporal" if upsample[level] else "spatial", width, inputs))
    return chain
