"""The steps of a stream around the DiT: intake, noise, stream-batch rows, latents and pixels."""

import torch
from torch import Tensor

from sdrt.engine.frames import FramesToPixels, MotionNoise
from sdrt.engine.module import PackageModule
from sdrt.engine.wan_vae.model import denormalise, normalise


class Intake(PackageModule):
    """Frames to pixels, and the noise scale that the chunk's motion asks for."""

    def __init__(self, pixels: FramesToPixels, motion: MotionNoise) -> None:
        super().__init__()
        self.pixels, self.motion = pixels, motion

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return self.motion.states(device)

    def forward(self, frames: Tensor, *, states: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return pixels ``[F, 3, H, W]``, noise scale ``[1]`` and timestep ``[1]``, both float32.

        The first chunk of a stream has no timestep of its own: it takes the preset's steps.

        Args:
            frames: uint8 ``[F, H, W, 3]``.
        """
        pixels = self.pixels(frames)
        if self.motion.first:
            return pixels, self.motion(frames, states=states)
        scale, timestep = self.motion(frames, states=states)
        return pixels, scale, timestep.float()


class LatentEncoder(PackageModule):
    """An encoder, and the normalisation that the preset asks for."""

    def __init__(self, encoder: PackageModule, normalised: bool) -> None:
        super().__init__()
        self.model, self.normalised = encoder, normalised

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return self.model.states(device)

    def forward(self, pixels: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Return latents, float32 ``[n, 16, h, w]``."""
        latents = self.model(pixels, states=states)
        return normalise(latents) if self.normalised else latents


class LatentDecoder(PackageModule):
    """A decoder, and the de-normalisation that the preset asks for."""

    def __init__(self, decoder: PackageModule, denormalised: bool) -> None:
        super().__init__()
        self.model, self.denormalised = decoder, denormalised

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return self.model.states(device)

    def forward(self, latents: Tensor, *, states: dict[str, Tensor]) -> Tensor:
        """Return pixels ``[F, 3, H, W]`` of latents float32 ``[1, n, 16, h, w]``."""
        latents = latents.squeeze(0)
        return self.model(denormalise(latents) if self.denormalised else latents, states=states)


class MixNoise(PackageModule):
    """Noise a chunk of latents as StreamDiffusionV2 does: ``noise a + latent (1 - a)``."""

    def forward(self, latents: Tensor, noise: Tensor, noise_scale: Tensor) -> Tensor:
        """Return the noisy latent ``[1, F, 16, h, w]`` of ``[F, 16, h, w]`` tensors."""
        return (noise * noise_scale + latents * (1 - noise_scale)).unsqueeze(0)


class ShiftRows(PackageModule):
    """Move the stream batch on by one denoise step and let the new chunk in at row 0."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """``timestep`` float32 ``[B, 1]`` and frame ``position`` int64 ``[B]`` of each row."""
        return {
            "timestep": torch.zeros(self.batch, 1, device=device),
            "position": torch.zeros(self.batch, dtype=torch.int64, device=device),
        }

    def forward(
        self,
        latent: Tensor,
        noisy: Tensor,
        timestep: Tensor,
        frame: Tensor,
        *,
        states: dict[str, Tensor],
    ) -> Tensor:
        """Return the rows' latents, float32 ``[B, 1, 16, h, w]``, each at its row's noise level.

        A row keeps its denoise step's timestep; row 0 takes the new chunk's.

        Args:
            latent: the rows after the last AR step; noisy: float32 ``[1, 1, 16, h, w]``;
            timestep: float32 ``[1]``; frame: int64 ``[1]``, the new chunk's frame index.
        """
        position = torch.cat([frame, states["position"][:-1]])
        timesteps = torch.cat([timestep.unsqueeze(1), states["timestep"][1:]])
        states["position"].copy_(position)
        states["timestep"].copy_(timesteps)
        return torch.cat([noisy, latent[:-1]])
