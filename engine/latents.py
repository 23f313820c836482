"""Latents in and out: an autoencoder's directions, and the normalisation of what lies between."""

import torch
from torch import Tensor

from sdrt.engine.how import How
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import Preset


class LatentEncoder(PackageModule):
    """An encoder, and the normalisation that the preset asks for."""

    def __init__(
        self, encoder: PackageModule, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()
    ) -> None:
        """Keep the encoder, and mean and std of each channel; without, latents stay as they are."""
        super().__init__()
        self.model, self.mean, self.std = encoder, mean, std

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return self.model.states(device)

    def forward(self, pixels: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Return latents, float32 ``[n, C, h, w]``."""
        latents = self.model(pixels, states=states)
        return normalise(latents, self.mean, self.std) if self.mean else latents


class LatentDecoder(PackageModule):
    """A decoder, and the de-normalisation that the preset asks for."""

    def __init__(
        self, decoder: PackageModule, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()
    ) -> None:
        """Keep the decoder, and what was done to the latents, as :class:`LatentEncoder` does."""
        super().__init__()
        self.model, self.mean, self.std = decoder, mean, std

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return self.model.states(device)

    def forward(self, latents: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Return pixels ``[F, 3, H, W]`` of latents float32 ``[1, n, C, h, w]``."""
        latents = latents.squeeze(0)
        if self.mean:
            latents = denormalise(latents, self.mean, self.std)
        return self.model(latents, states=states)


def latent_encoder(preset: Preset, first: bool, how: How) -> LatentEncoder:
    """Return the encoder of a preset that has one, for a stream's first chunk or a later one."""
    coder = preset.input_coder
    assert coder is not None, f"preset {preset.name} encodes nothing"
    encoder = coder.encoder(preset, preset.input_frames(first), first, how)
    statistics = (coder.mean, coder.std) if preset.latents.normalise_encoder else ()
    return LatentEncoder(encoder, *statistics)


def latent_decoder(preset: Preset, latent_frames: int, first: bool, how: How) -> LatentDecoder:
    """Return the decoder of a preset, for a stream's first call or a later one."""
    coder = preset.output_coder
    decoder = coder.decoder(preset, latent_frames, first, how)
    statistics = (coder.mean, coder.std) if preset.latents.denormalise_decoder else ()
    return LatentDecoder(decoder, *statistics)


def normalise(latents: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return ``[F, C, h, w]`` latents, float32, with mean and std of each channel taken out."""
    return (latents - _per_channel(mean, latents)) / _per_channel(std, latents)


def denormalise(latents: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return normalised ``[F, C, h, w]`` latents, float32, as a decoder takes them."""
    return latents * _per_channel(std, latents) + _per_channel(mean, latents)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return ``[C, 1, 1]`` computed on the device: a literal tensor would be exported as a
    constant in host memory and copied over in every call."""
    channel = torch.arange(len(values), device=like.device).view(-1, 1, 1)
    table = torch.zeros_like(channel, dtype=like.dtype)
    for index, value in enumerate(values):
        table = torch.where(channel == index, value, table)
    return table
