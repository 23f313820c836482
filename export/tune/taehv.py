"""Candidates for the forms of TAEHV's first and last layers, at the sizes of a preset."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sdrt.engine.convs import FUSED, channels_last
from sdrt.engine.preset.preset import Preset
from sdrt.engine.taehv.model import FIRST, FUSED_CHANNELS, LAST, TaehvDecoder, TaehvEncoder
from sdrt.export.tune.wan_vae import PLAIN, Candidates, Question
from sdrt.kernels.dispatch import use_kernel


def taehv_questions(preset: Preset, device: torch.device, dtype: torch.dtype) -> Iterator[Question]:
    """Yield the layers with a choice of forms, in the steady phase."""
    config, stream = preset.taehv, preset.stream
    size, latents = (stream.height, stream.width), stream.chunk_latent_frames

    def noise(channels: int) -> Tensor:
        shape = (4 * latents, channels, *size)
        return channels_last(torch.randn(shape, device=device, dtype=dtype))

    def forms(x: Tensor, channels: int) -> tuple[str, ...]:
        fits = use_kernel(x) and channels <= FUSED_CHANNELS
        return (PLAIN, FUSED) if fits else (PLAIN,)

    def encoder() -> Candidates:
        x, found = noise(3), {}
        for form in forms(x, config.encoder_width):
            coder = TaehvEncoder(config, *size, 4 * latents, False, {FIRST: form})
            found[form] = partial(coder.to(device, dtype).first_layers, x)
        return found

    def decoder() -> Candidates:
        x, found = noise(config.decoder_widths[-1]), {}
        for form in forms(x, config.decoder_widths[-1]):
            coder = TaehvDecoder(config, *size, latents, False, {LAST: form})
            found[form] = partial(coder.to(device, dtype).last_layers, x)
        return found

    if preset.encoder == "taehv":
        yield FIRST, FIRST, encoder
    if preset.decoder == "taehv":
        yield LAST, LAST, decoder
