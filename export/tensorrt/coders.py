"""Encode and decode stages as TensorRT takes them: frames to noisy latents, latents to frames."""

from typing import Any

import torch
from torch import Tensor

from sdrt.engine.frames import FramesToPixels, PixelsToFrames
from sdrt.engine.latents import LatentDecoder, LatentEncoder
from sdrt.engine.module import PackageModule
from sdrt.engine.motion import FULL_MOTION, Intake, MixNoise, MotionNoise

FIXED_POINT = 1 << 40
"""Units of one in the noise scale's integers."""
SLACK = FIXED_POINT >> 20
"""A millionth, in those units."""
TERMS = 1 << 10
"""Units of float32's part of the noise scale: its 30 bits times these are ``FIXED_POINT``."""


class OnnxFramesToPixels(FramesToPixels):
    """The same, with nothing but a cast done to uint8: TensorRT has no other operation on it."""

    def forward(self, frames: Tensor) -> Tensor:
        levels = frames.float().permute(0, 3, 1, 2)
        pixels = levels / 127.5 - 1 if self.signed else levels / 255
        return pixels.to(self.dtype)


class OnnxPixelsToFrames(PixelsToFrames):
    """The same, with nothing but a cast done to uint8."""

    def forward(self, pixels: Tensor) -> Tensor:
        levels = pixels.float().permute(0, 2, 3, 1)
        levels = (levels + 1) * 127.5 if self.signed else levels * 255
        return levels.round().clamp(0, 255).to(torch.uint8)


class OnnxMotionNoise(MotionNoise):
    """The noise scale in fixed point: TensorRT has no float64.

    Scale and timestep agree with the float64 ones, except that a timestep less than 1e-6 below a
    whole number counts as that number: where the scale settles, rounding must not decide.
    """

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """Return ``last_frame`` uint8 ``[H, W, 3]`` and ``noise_scale_fixed`` int64 ``[1]``."""
        states = super().states(device)
        del states["noise_scale"]
        return states | {"noise_scale_fixed": torch.zeros(1, dtype=torch.int64, device=device)}

    def roles(self) -> dict[str, Any]:
        return {"last_frame": "picture", "noise_scale_fixed": "noise_scale"}

    def forward(
        self, frames: Tensor, *, states: dict[str, Tensor]
    ) -> Tensor | tuple[Tensor, Tensor]:
        last, scale = states["last_frame"], states["noise_scale_fixed"]
        initial = round(self.initial_scale * FIXED_POINT)
        frames = frames.float()
        if self.first:
            fixed = torch.full_like(scale, initial)
            states["noise_scale_fixed"] = fixed
            states["last_frame"] = frames[-1].to(torch.uint8)
            return fixed.float() / FIXED_POINT
        pixels = torch.cat([last.float()[None], frames]) / 127.5 - 1
        most = (pixels[1:] - pixels[:-1]).flatten(1).square().mean(dim=1).sqrt().amax(dim=0)
        motion = (most / FULL_MOTION).clamp(0, 1)
        motion = (motion * (FIXED_POINT // TERMS)).to(torch.int64).view(1) * TERMS
        new = (90 * initial - 9 * motion + 10 * scale) // 100
        whole = (self.num_train_timesteps * new + SLACK) // FIXED_POINT
        states["noise_scale_fixed"] = new
        states["last_frame"] = frames[-1].to(torch.uint8)
        return new.float() / FIXED_POINT, whole - self.num_train_timesteps // 10


class EncodeStage(PackageModule):
    """Intake, encoder and noise."""

    def __init__(self, name: str, intake: Intake, encoder: LatentEncoder) -> None:
        """Join modules; ``name`` is what the encoder's weights are called."""
        super().__init__()
        self.intake, self.encoder, self.mix = intake, encoder, MixNoise()
        self.weight_prefixes = {"encoder": name}

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """The intake's states under ``intake.``, the encoder's under ``encoder.``."""
        encoder = self.encoder.states(device)
        intake = self.intake.states(device)
        return {f"intake.{name}": state for name, state in intake.items()} | {
            f"encoder.{name}": state for name, state in encoder.items()
        }

    def roles(self) -> dict[str, Any]:
        return {f"intake.{name}": role for name, role in self.intake.roles().items()}

    def forward(
        self, frames: Tensor, noise: Tensor, *, states: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the noisy latents ``[1, n, C, h, w]`` and, after the first chunk, the timestep.

        Args:
            frames: uint8 ``[F, H, W, 3]``; noise: float32 ``[n, C, h, w]``.
        """
        intake = _taken(states, "intake.")
        pixels, scale, *timestep = self.intake(frames, states=intake)
        states.update({f"intake.{name}": state for name, state in intake.items()})
        latents = self.encoder(pixels, states=_taken(states, "encoder."))
        return self.mix(latents, noise, scale), *timestep


class DecodeStage(PackageModule):
    """Decoder and frames."""

    def __init__(self, name: str, decoder: LatentDecoder, frames: PixelsToFrames) -> None:
        """Join modules; ``name`` is what the decoder's weights are called."""
        super().__init__()
        self.decoder, self.frames = decoder, frames
        self.weight_prefixes = {"decoder": name}

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """The decoder's states under ``decoder.``."""
        states = self.decoder.states(device)
        return {f"decoder.{name}": state for name, state in states.items()}

    def forward(self, latent: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Return frames uint8 ``[F, H, W, 3]`` of latents float32 ``[1, n, C, h, w]``."""
        return self.frames(self.decoder(latent, states=_taken(states, "decoder.")))


def _taken(states: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): state
        for name, state in states.items()
        if name.startswith(prefix)
    }
