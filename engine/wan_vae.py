"""The streaming Wan 2.1 VAE: an encoder and a decoder stage, and the latents' normalisation."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdrt.engine.causal_conv import Conv, zero_histories
from sdrt.engine.config import WanVaeConfig
from sdrt.engine.stage import StageModule
from sdrt.engine.wan_vae_blocks import (
    Chain,
    Downsample,
    Forms,
    Head,
    Middle,
    ResidualBlock,
    Upsample,
    causal_conv,
)

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


class WanVaeError(ValueError):
    """Sizes that the Wan VAE cannot take."""


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


class _Coder(StageModule):
    """What encoder and decoder share: the states."""

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """Return the history of each causal convolution: ``[1 or 2, C, H, W]``, channels_last.

        Zeros, in the parameters' dtype; the names are those of the layers. Both phases have
        the same.
        """
        return zero_histories(self, device)


class WanVaeEncoder(_Coder):
    """Pixels to latents, 8x smaller in space and 4x in time."""

    def __init__(
        self,
        config: WanVaeConfig,
        height: int,
        width: int,
        frames: int,
        first: bool,
        forms: Forms = None,
    ) -> None:
        """Fix the sizes.

        Args:
            height, width: of the pixel frames; multiples of 8.
            frames: pixel frames of one call: a multiple of 4, and one more in a stream's first
                call, whose very first frame becomes a latent alone.
            first: whether this is a stream's first call.
            forms: causal convolution's name -> ``stacked`` or ``conv3d``, by default by
                ``conv_form``; the same as ``from_public`` got.
        Raises:
            WanVaeError: height, width or frames that do not divide.
        """
        super().__init__()
        _check_size(height, width)
        if frames < 1 or frames % 4 != int(first):
            expected = "4k + 1 in a stream's first call" if first else "a multiple of 4"
            raise WanVaeError(f"the Wan VAE encodes {expected}: got {frames} frames a call")
        size, layers = (height, width), Chain()
        conv1 = causal_conv("encoder.conv1", 3, config.dim, size, forms)
        for index, (kind, inputs, outputs) in enumerate(encoder_chain(config)):
            name = f"encoder.downsamples.{index}"
            if kind == "residual":
                layers.append(ResidualBlock(name, inputs, outputs, size, forms))
                continue
            layers.append(Downsample(name, inputs, size, kind == "temporal", first))
            size = (size[0] // 2, size[1] // 2)
        channels = config.dim * config.dim_mult[-1]
        self.encoder = nn.ModuleDict(
            {
                "conv1": conv1,
                "downsamples": layers,
                "middle": Middle("encoder.middle", channels, size, forms),
                "head": Head("encoder.head", channels, config.z_dim, size, forms),
            }
        )

    def forward(self, pixels: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Encode the next frames of a stream.

        Args:
            pixels: ``[F, 3, H, W]`` in [-1, 1], channels_last, in the parameters' dtype.
            states: as ``states`` gives them; overwritten.
        Returns:
            Latents ``[F / 4, 16, H / 8, W / 8]``, one more in the first call: the posterior's
            mean, not normalised, channels_last, float32.
        """
        x = pixels
        for part in self.encoder.values():
            x = part(x, states)
        return x.float()


class WanVaeDecoder(_Coder):
    """Latents to pixels, 8x larger in space and 4x in time."""

    def __init__(
        self,
        config: WanVaeConfig,
        height: int,
        width: int,
        latent_frames: int,
        first: bool,
        forms: Forms = None,
    ) -> None:
        """Fix the sizes.

        Args:
            height, width: of the pixel frames; multiples of 8.
            latent_frames: of one call.
            first: whether this is a stream's first call.
            forms: causal convolution's name -> ``stacked`` or ``conv3d``, by default by
                ``conv_form``; the same as ``from_public`` got.
        Raises:
            WanVaeError: height or width that do not divide, or no latent frames.
        """
        super().__init__()
        _check_size(height, width)
        if latent_frames < 1:
            raise WanVaeError(f"the Wan VAE decodes at least 1 latent: got {latent_frames} a call")
        size, layers = (height // 8, width // 8), Chain()
        channels = config.dim * config.dim_mult[-1]
        conv1 = causal_conv("decoder.conv1", config.z_dim, channels, size, forms)
        middle = Middle("decoder.middle", channels, size, forms)
        for index, (kind, inputs, outputs) in enumerate(decoder_chain(config)):
            name = f"decoder.upsamples.{index}"
            if kind == "residual":
                layers.append(ResidualBlock(name, inputs, outputs, size, forms))
                continue
            layers.append(Upsample(name, inputs, size, kind == "temporal", first))
            size = (size[0] * 2, size[1] * 2)
        channels = config.dim * config.dim_mult[0]
        self.conv2 = Conv(config.z_dim, config.z_dim, 1)
        self.decoder = nn.ModuleDict(
            {
                "conv1": conv1,
                "middle": middle,
                "upsamples": layers,
                "head": Head("decoder.head", channels, 3, size, forms),
            }
        )

    def forward(self, latents: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Decode the next latents of a stream.

        Args:
            latents: ``[N, 16, H / 8, W / 8]``, float32, not normalised.
            states: as ``states`` gives them; overwritten.
        Returns:
            Pixels ``[4N, 3, H, W]``, ``[4N - 3, 3, H, W]`` in the first call: about [-1, 1] but
            not clamped, channels_last, in the parameters' dtype.
        """
        x = self.conv2(latents.to(self.conv2.weight.dtype, memory_format=torch.channels_last))
        for part in self.decoder.values():
            x = part(x, states)
        return x


def _check_size(height: int, width: int) -> None:
    if height % 8 or width % 8:
        raise WanVaeError(f"the Wan VAE takes multiples of 8: got height {height}, width {width}")


def normalise(latents: Tensor) -> Tensor:
    """Return ``[F, 16, h, w]`` latents, float32, with Wan's mean and std taken out."""
    return (latents - _per_channel(MEAN, latents)) / _per_channel(STD, latents)


def denormalise(latents: Tensor) -> Tensor:
    """Return normalised ``[F, 16, h, w]`` latents, float32, as the decoder takes them."""
    return latents * _per_channel(STD, latents) + _per_channel(MEAN, latents)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return ``[C, 1, 1]`` computed on the device: a literal tensor would be exported as a
    constant in host memory and copied over in every call."""
    channel = torch.arange(len(values), device=like.device).view(-1, 1, 1)
    table = torch.zeros_like(channel, dtype=like.dtype)
    for index, value in enumerate(values):
        table = torch.where(channel == index, value, table)
    return table
