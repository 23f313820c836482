"""The Wan 2.1 VAE, as :class:`sdrt.engine.coder.Coder` describes an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sdrt.engine.module import PackageModule
    from sdrt.engine.preset.preset import Preset
    from sdrt.engine.preset.sections import Problem

# fmt: off
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
"""Mean of each latent channel of Wan 2.1."""
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
"""Standard deviation of each latent channel of Wan 2.1."""
# fmt: on


class WanVaeCoder:
    """The Wan 2.1 VAE: 8x in space, 4x in time."""

    name = "wan-vae"
    component = "vae"
    files: tuple[str, ...] = ("Wan2.1_VAE.safetensors", "Wan2.1_VAE.pth")
    origin = ""
    encoder_stage, decoder_stage = "vae_encoder", "vae_decoder"
    space, time = 8, 4
    signed = True
    first_alone = True
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def channels(self, preset: Preset) -> int:
        return preset.wan_vae.z_dim

    def problems(self, preset: Preset) -> Iterator[Problem]:
        if preset.wan_vae.z_dim != preset.dit.in_dim:
            rule = f"must equal dit.in_dim = {preset.dit.in_dim}"
            yield "wan_vae.z_dim", preset.wan_vae.z_dim, rule

    def default_source(self, preset: Preset) -> str | None:
        return preset.weights.base

    def encoder(
        self, preset: Preset, frames: int, first: bool, how: Mapping[str, str]
    ) -> PackageModule:
        from sdrt.engine.wan_vae.model import WanVaeEncoder

        size = (preset.stream.height, preset.stream.width)
        return WanVaeEncoder(preset.wan_vae, *size, frames, first, how, largest_call(preset))

    def decoder(
        self, preset: Preset, latent_frames: int, first: bool, how: Mapping[str, str]
    ) -> PackageModule:
        from sdrt.engine.wan_vae.model import WanVaeDecoder

        size = (preset.stream.height, preset.stream.width)
        return WanVaeDecoder(preset.wan_vae, *size, latent_frames, first, how, largest_call(preset))

    def public_shapes(self, preset: Preset) -> dict[str, tuple[int, ...]]:
        from sdrt.engine.wan_vae import weights

        return weights.public_shapes(preset.wan_vae)

    def from_public(
        self, preset: Preset, tensors: Mapping[str, Tensor], how: Mapping[str, str]
    ) -> Mapping[str, Tensor]:
        from sdrt.engine.wan_vae import weights

        return weights.from_public(preset.wan_vae, tensors, how)

    def accepts(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
        return False


def largest_call(preset: Preset) -> int:
    """Return the most pixel frames that the Wan VAE takes or gives in one call."""
    return max(preset.first_chunk_frames, preset.chunk_frames)
