"""Candidates for the forms of TAEHV's first and last layers, at the sizes of a preset."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sdrt.engine.convs import channels_last
from sdrt.engine.preset.preset import Preset
from sdrt.engine.taehv.coder import TaehvCoder
from sdrt.engine.taehv.model import (
    FIRST,
    FUSED,
    FUSED_CHANNELS,
    LAST,
    TaehvDecoder,
    TaehvEncoder,
)
from sdrt.export.tune.tunable import PLAIN, Candidates, Tunable
from sdrt.kernels.dispatch import use_kernel


def taehv_tunables(preset: Preset, device: torch.device, dtype: torch.dtype) -> Iterator[Tunable]:
    """Yield the layers with a choice of forms, in the steady phase."""
    config, stream = preset.taehv, preset.stream
    size, latents = (stream.height, stream.width), stream.chunk_latent_frames
    frames = preset.chunk_frames

    def noise(channels: int) -> Tensor:
        shape = (frames, channels, *size)
        return channels_last(torch.randn(shape, device=device, dtype=dtype))

    def forms(x: Tensor, channels: int) -> tuple[str, ...]:
        fits = use_kernel(x) and channels <= FUSED_CHANNELS
        return (PLAIN, FUSED) if fits else (PLAIN,)

    def encoder() -> Candidates:
        x, found = noise(3), {}
        for form in forms(x, config.encoder_width):
            coder = TaehvEncoder(config, *size, frames, False, {FIRST: form})
            found[form] = partial(coder.to(device, dtype).first_layers, x)
        return found

    def decoder() -> Candidates:
        x, found = noise(config.decoder_widths[-1]), {}
        for form in forms(x, config.decoder_widths[-1]):
            coder = TaehvDecoder(config, *size, latents, False, {LAST: form})
            found[form] = partial(coder.to(device, dtype).last_layers, x)
        return found

    if isinstance(preset.input_coder, TaehvCoder):
        yield Tunable(FIRST, TaehvCoder.encoder_stage, FIRST, encoder)
    if isinstance(preset.output_coder, TaehvCoder):
        yield Tunable(LAST, TaehvCoder.decoder_stage, LAST, decoder)
