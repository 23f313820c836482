"""The streaming Wan 2.1 VAE: its encoder and its decoder."""

from typing import cast

import torch
from torch import Tensor, nn

from sdrt.engine.convs import CausalConv, Conv, zero_histories
from sdrt.engine.how import NOTHING, How, below
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import WanVaeConfig
from sdrt.engine.wan_vae.blocks import Middle, causal_conv
from sdrt.engine.wan_vae.chain import Chain, decoder_layers, encoder_layers, make_head
from sdrt.engine.wan_vae.fused import POSITION, FusedConv
from sdrt.kernels.errors import SdrtError

PLACE = "wan_vae"
"""Below it lie the places of the layers, named as their weights are."""


class WanVaeError(SdrtError):
    """Sizes that the Wan VAE cannot take."""


class _Coder(PackageModule):
    """What encoder and decoder share: the states."""

    frames: int
    """Pixel frames of one call."""

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """Return the history of each causal convolution, and with fused layers the position.

        Zeros; the names are those of the layers. Both phases have the same.
        """
        states = zero_histories(self, device)
        if any(isinstance(layer, FusedConv) for layer in self.modules()):
            states[POSITION] = torch.zeros(1, dtype=torch.int64, device=device)
        return states

    def advance(self, states: dict[str, Tensor]) -> None:
        """Count the frames of a call, once every layer has used the position."""
        if POSITION in states:
            states[POSITION].add_(self.frames)


class WanVaeEncoder(_Coder):
    """Pixels to latents, 8x smaller in space and 4x in time."""

    def __init__(
        self,
        config: WanVaeConfig,
        height: int,
        width: int,
        frames: int,
        first: bool,
        how: How = NOTHING,
        largest_call: int | None = None,
    ) -> None:
        """Fix the sizes.

        Args:
            height, width: of the pixel frames; multiples of 8.
            frames: pixel frames of one call: a multiple of 4, and one more in a stream's first
                call, whose very first frame becomes a latent alone.
            first: whether this is a stream's first call.
            how: place -> form, for layers that differ from the default; the same as
                ``from_public`` got.
            largest_call: most pixel frames of any call of the stream, where fused layers share
                their states with calls of another size; by default those of this call.
        Raises:
            WanVaeError: height, width or frames that do not divide.
        """
        super().__init__()
        _check_size(height, width)
        if frames < 1 or frames % 4 != int(first):
            expected = "4k + 1 in a stream's first call" if first else "a multiple of 4"
            raise WanVaeError(f"the Wan VAE encodes {expected}: got {frames} frames a call")
        size, forms = (height, width), below(how, PLACE)
        conv1 = causal_conv("encoder.conv1", 3, config.dim, size, forms)
        self.frames = frames
        layers, size = encoder_layers(config, size, first, forms, largest_call or frames)
        channels = config.dim * config.dim_mult[-1]
        self.encoder = nn.ModuleDict(
            {
                "conv1": conv1,
                "downsamples": layers,
                "middle": Middle("encoder.middle", channels, size, forms),
                "head": make_head("encoder.head", channels, config.z_dim, size, forms),
            }
        )

    def forward(self, pixels: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Encode the next frames of a stream.

        Args:
            pixels: ``[F, 3, H, W]`` in [-1, 1], channels_last, in the parameters' dtype.
            states: as ``states`` gives them; overwritten.
        Returns:
            Latents ``[F / 4, C, H / 8, W / 8]``, one more in the first call: the posterior's
            mean, not normalised, channels_last, float32.
        """
        conv1, downsamples, middle, head = self.encoder.values()
        conv1, downsamples = cast(CausalConv, conv1), cast(Chain, downsamples)
        bias = conv1.bias if downsamples.adds_bias else None
        x = downsamples(conv1(pixels, states, biased=bias is None), states, bias=bias)
        x = head(middle(x, states), states)
        self.advance(states)
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
        how: How = NOTHING,
        largest_call: int | None = None,
    ) -> None:
        """Fix the sizes.

        Args:
            height, width: of the pixel frames; multiples of 8.
            latent_frames: of one call.
            first: whether this is a stream's first call.
            how: place -> form, for layers that differ from the default; the same as
                ``from_public`` got.
            largest_call: most pixel frames of any call of the stream, where fused layers share
                their states with calls of another size; by default those of this call.
        Raises:
            WanVaeError: height or width that do not divide, or no latent frames.
        """
        super().__init__()
        _check_size(height, width)
        if latent_frames < 1:
            raise WanVaeError(f"the Wan VAE decodes at least 1 latent: got {latent_frames} a call")
        size, forms = (height // 8, width // 8), below(how, PLACE)
        channels = config.dim * config.dim_mult[-1]
        conv1 = causal_conv("decoder.conv1", config.z_dim, channels, size, forms)
        middle = Middle("decoder.middle", channels, size, forms)
        self.frames = 4 * latent_frames - 3 * first
        layers, size = decoder_layers(config, size, first, forms, largest_call or self.frames)
        channels = config.dim * config.dim_mult[0]
        self.conv2 = Conv(config.z_dim, config.z_dim, 1)
        self.decoder = nn.ModuleDict(
            {
                "conv1": conv1,
                "middle": middle,
                "upsamples": layers,
                "head": make_head("decoder.head", channels, 3, size, forms),
            }
        )

    def forward(self, latents: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Decode the next latents of a stream.

        Args:
            latents: ``[N, C, H / 8, W / 8]``, float32, not normalised.
            states: as ``states`` gives them; overwritten.
        Returns:
            Pixels ``[4N, 3, H, W]``, ``[4N - 3, 3, H, W]`` in the first call: about [-1, 1] but
            not clamped, channels_last, in the parameters' dtype.
        """
        x = self.conv2(latents.to(self.conv2.weight.dtype, memory_format=torch.channels_last))
        conv1, middle, upsamples, head = self.decoder.values()
        x = upsamples(middle(conv1(x, states), states), states, head)
        self.advance(states)
        return x


def _check_size(height: int, width: int) -> None:
    if height % 8 or width % 8:
        raise WanVaeError(f"the Wan VAE takes multiples of 8: got height {height}, width {width}")
