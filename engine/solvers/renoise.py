"""The solver of models that were distilled to a few steps: to x0, then noise for the next step."""

import torch
from torch import Tensor

from sdrt.engine.preset.sections import ScheduleConfig
from sdrt.engine.solvers.schedule import add_noise, denoise_timesteps, flow_table, nearest_sigma
from sdrt.engine.solvers.solver import Solver


class Renoise(Solver):
    """Flow to x0, and re-noising to the next denoise step."""

    draws = True

    sigmas: Tensor
    timesteps: Tensor

    def __init__(self, schedule: ScheduleConfig) -> None:
        """Take the noise levels."""
        super().__init__()
        self.schedule = schedule
        sigmas, timesteps = flow_table(schedule.shift, schedule.num_train_timesteps)
        self.register_buffer("sigmas", sigmas)
        self.register_buffer("timesteps", timesteps)

    def tables(self) -> dict[str, Tensor]:
        """Return ``timesteps`` ``[n, 1]`` and ``next_sigmas`` ``[n]``.

        The latter is the noise put back after a step; it is 0 after the last one, so that
        re-noising then keeps the finished x0.
        """
        schedule = self.schedule
        steps = denoise_timesteps(
            schedule.steps, schedule.shift, schedule.warp, schedule.num_train_timesteps
        )
        after = nearest_sigma(steps[1:], self.sigmas, self.timesteps)
        return {"timesteps": steps.view(-1, 1), "next_sigmas": torch.cat([after, torch.zeros(1)])}

    def forward(self, flow: Tensor, latent: Tensor, *row: Tensor) -> Tensor:
        """Return the latent at the next noise level; with a next sigma of 0, the finished x0.

        Args:
            flow, latent: float32 ``[B, F, C, h, w]``.
            row: timestep, float32 ``[B, 1]``, next sigma, float32 ``[B]``, noise like ``latent``.
        """
        timestep, next_sigma, noise = row
        sigma = nearest_sigma(timestep, self.sigmas, self.timesteps)
        x0 = latent - sigma.view(-1, sigma.shape[1], 1, 1, 1) * flow
        return add_noise(x0, noise, next_sigma)
