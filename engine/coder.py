"""Autoencoders: what each one says of itself, and all of them by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from sdrt.engine.taehv.coder import TaehvCoder
from sdrt.engine.wan_vae.coder import WanVaeCoder

if TYPE_CHECKING:
    from torch import Tensor

    from sdrt.engine.module import PackageModule
    from sdrt.engine.preset.preset import Preset
    from sdrt.engine.preset.sections import Problem

CoderName = Literal["wan-vae", "taehv"]
"""What presets may call an autoencoder: the keys of :data:`CODERS`."""


class Coder(Protocol):
    """An autoencoder: its geometry, its weights, and the modules of its two directions.

    Facts need no torch; what makes modules or touches tensors imports it when it is called.
    """

    name: str
    """What presets call it; its weights in an engine are ``<name>.model.*``."""
    component: str
    """What sources of weights call it."""
    files: tuple[str, ...]
    """Names of its checkpoint's file, the preferred one first."""
    origin: str
    """Where a checkpoint is to be had that no preset can name; else empty."""
    encoder_stage: str
    """The stage that encodes with it."""
    decoder_stage: str
    """The stage that decodes with it."""
    space: int
    """Pixels that a latent stands for, along either side."""
    time: int
    """Pixel frames that a latent frame stands for."""
    signed: bool
    """Whether its pixels lie in [-1, 1]; else they lie in [0, 1]."""
    first_alone: bool
    """Whether it encodes a stream's very first frame alone, as a latent frame."""
    mean: tuple[float, ...]
    """Mean of each latent channel, where latents are normalised; else empty."""
    std: tuple[float, ...]
    """Standard deviation of each latent channel; as ``mean``."""

    def channels(self, preset: Preset) -> int:
        """Return the latent channels that the preset gives it."""
        ...

    def problems(self, preset: Preset) -> Iterator[Problem]:
        """Yield what of the preset's settings it cannot have."""
        ...

    def default_source(self, preset: Preset) -> str | None:
        """Return the preset's own source of its weights."""
        ...

    def encoder(
        self, preset: Preset, frames: int, first: bool, how: Mapping[str, str]
    ) -> PackageModule:
        """Return the encoder of ``frames`` pixel frames a call.

        It maps pixels ``[F, 3, H, W]`` to latents, float32 ``[n, C, h, w]``.

        Args:
            first: whether this is a stream's first call.
            how: place -> implementation.
        """
        ...

    def decoder(
        self, preset: Preset, latent_frames: int, first: bool, how: Mapping[str, str]
    ) -> PackageModule:
        """Return the decoder of ``latent_frames`` a call.

        It maps latents, float32 ``[n, C, h, w]``, to pixels ``[F, 3, H, W]``. The arguments are
        those of :meth:`encoder`.
        """
        ...

    def public_shapes(self, preset: Preset) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor of the public checkpoint."""
        ...

    def from_public(
        self, preset: Preset, tensors: Mapping[str, Tensor], how: Mapping[str, str]
    ) -> Mapping[str, Tensor]:
        """Return the parameters of encoder and decoder, made with the same ``how``."""
        ...

    def accepts(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
        """Return whether a tensor of another shape than the expected one will do."""
        ...


CODERS: dict[str, Coder] = {coder.name: coder for coder in (WanVaeCoder(), TaehvCoder())}
"""All autoencoders by name."""
