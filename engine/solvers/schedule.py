"""The flow-matching schedule: sigma table, forward noising, denoising steps."""

import torch
from torch import Tensor


def flow_table(shift: float, num_train_timesteps: int = 1000) -> tuple[Tensor, Tensor]:
    """Return the shifted flow-matching table ``(sigmas, timesteps)``, float32 ``[N]``, falling.

    ``sigma' = s sigma / (1 + (s - 1) sigma)`` over ``linspace(1, 0, N + 1)[:-1]``.
    Source: the flow-match scheduler of CausVid, which StreamDiffusionV2 and Self-Forcing use.
    """
    sigmas = torch.linspace(1.0, 0.0, num_train_timesteps + 1, device="cpu")[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return sigmas, sigmas * num_train_timesteps


def denoise_timesteps(
    steps: tuple[int, ...], shift: float, warp: bool, total: int = 1000
) -> Tensor:
    """Return the timesteps of a step list, float32 ``[len(steps)]``.

    With ``warp`` step ``k`` stands for table entry ``total - k`` (entry ``total`` is 0).
    """
    if not warp:
        return torch.tensor(steps, dtype=torch.float32)
    timesteps = torch.cat([flow_table(shift, total)[1], torch.zeros(1)])
    return timesteps[total - torch.tensor(steps)]


def nearest_sigma(timestep: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
    """Return the sigma of the table entry nearest to each timestep, in ``timestep``'s shape."""
    distance = (timesteps - timestep.to(timesteps.dtype).unsqueeze(-1)).abs()
    return sigmas[distance.argmin(dim=-1)]


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return ``(1 - sigma) clean + sigma noise``; ``sigma`` broadcasts over trailing dimensions."""
    sigma = sigma.reshape(sigma.shape + (1,) * (clean.ndim - sigma.ndim))
    return (1 - sigma) * clean + sigma * noise
