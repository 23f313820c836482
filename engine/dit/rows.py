"""The rows of a stream batch: each at its denoise step, moved on by one in every AR step."""

from typing import Any

import torch
from torch import Tensor

from sdrt.engine.module import PackageModule


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

    def roles(self) -> dict[str, Any]:
        return {"timestep": "timestep", "position": "position"}

    def forward(
        self,
        latent: Tensor,
        noisy: Tensor,
        timestep: Tensor,
        frame: Tensor,
        *,
        states: dict[str, Tensor],
    ) -> Tensor:
        """Return the rows' latents, float32 ``[B, 1, C, h, w]``, each at its row's noise level.

        A row keeps its denoise step's timestep; row 0 takes the new chunk's.

        Args:
            latent: the rows after the last AR step; noisy: float32 ``[1, 1, C, h, w]``;
            timestep: float32 ``[1]``; frame: int64 ``[1]``, the new chunk's frame index.
        """
        position = torch.cat([frame, states["position"][:-1]])
        timesteps = torch.cat([timestep.unsqueeze(1), states["timestep"][1:]])
        states["position"].copy_(position)
        states["timestep"].copy_(timesteps)
        return torch.cat([noisy, latent[:-1]])
