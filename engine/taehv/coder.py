"""TAEHV, as :class:`sdrt.engine.coder.Coder` describes an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sdrt.engine.module import PackageModule
    from sdrt.engine.preset.preset import Preset
    from sdrt.engine.preset.sections import Problem


class TaehvCoder:
    """TAEHV, the small autoencoder of Wan 2.1's latents: 8x in space, 4x in time.

    It has no frame of its own at a stream's start: whole groups of four keep its output, whose
    first three frames are dropped, on the input's frames.
    """

    name = "taehv"
    component = "taehv"
    files: tuple[str, ...] = ("taehv.safetensors", "taew2_1.safetensors", "taew2_1.pth")
    origin = "taew2_1.pth of github.com/madebyollin/taehv"
    encoder_stage, decoder_stage = "taehv_encoder", "taehv_decoder"
    space, time = 8, 4
    signed = False
    first_alone = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def channels(self, preset: Preset) -> int:
        return preset.taehv.latent_channels

    def problems(self, preset: Preset) -> Iterator[Problem]:
        if preset.taehv.latent_channels != preset.dit.in_dim:
            rule = f"must equal dit.in_dim = {preset.dit.in_dim}"
            yield "taehv.latent_channels", preset.taehv.latent_channels, rule

    def default_source(self, preset: Preset) -> str | None:
        return preset.weights.taehv

    def encoder(
        self, preset: Preset, frames: int, first: bool, how: Mapping[str, str]
    ) -> PackageModule:
        from sdrt.engine.taehv.model import TaehvEncoder

        size = (preset.stream.height, preset.stream.width)
        return TaehvEncoder(preset.taehv, *size, frames, first, how)

    def decoder(
        self, preset: Preset, latent_frames: int, first: bool, how: Mapping[str, str]
    ) -> PackageModule:
        from sdrt.engine.taehv.model import TaehvDecoder

        size = (preset.stream.height, preset.stream.width)
        return TaehvDecoder(preset.taehv, *size, latent_frames, first, how)

    def public_shapes(self, preset: Preset) -> dict[str, tuple[int, ...]]:
        from sdrt.engine.taehv import model

        return model.public_shapes(preset.taehv)

    def from_public(
        self, preset: Preset, tensors: Mapping[str, Tensor], how: Mapping[str, str]
    ) -> Mapping[str, Tensor]:
        from sdrt.engine.taehv import model

        return model.from_public(preset.taehv, tensors, how)

    def accepts(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
        """Allow frame splits with twice the outputs: they serve two frame rates."""
        split = name.startswith("decoder.") and expected[2:] == (1, 1)
        return split and found == (2 * expected[0], *expected[1:])
