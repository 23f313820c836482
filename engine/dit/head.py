"""What comes after the blocks of the causal Wan DiT: head and solver."""

import math

import torch
from torch import Tensor, nn

from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import DitConfig
from sdrt.engine.solvers.solver import Solver
from sdrt.kernels.residual_norm import Modulation, modulated_norm


class DitHead(nn.Module):
    """Modulated norm, projection and unpatchify: tokens to flow."""

    def __init__(self, config: DitConfig, height: int, width: int) -> None:
        super().__init__()
        self.config, self.rows, self.columns = config, height // 2, width // 2
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the flow, float32 ``[B, F, C, h, w]``."""
        modulation = Modulation(self.modulation, e.unsqueeze(2).expand(-1, -1, 2, -1))
        flow = self.head(modulated_norm(x, modulation, 0, 1, self.config.eps)).float()
        flow = flow.view(x.shape[0], -1, self.rows, self.columns, 2, 2, self.config.out_dim)
        return flow.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


class DitOut(PackageModule):
    """Head and solver in one package: tokens to the latent at the next noise level."""

    def __init__(self, config: DitConfig, height: int, width: int, solver: Solver) -> None:
        """Size the head for latents of ``height`` x ``width``; ``solver`` makes the step."""
        super().__init__()
        self.head = DitHead(config, height, width)
        self.solver = solver

    def forward(self, x: Tensor, e: Tensor, latent: Tensor, *row: Tensor) -> Tensor:
        """Return the latent at the next noise level.

        Args:
            x, e: as :class:`DitIn` and the blocks return them.
            latent, row: as the solver takes them.
        """
        return self.solver(self.head(x, e), latent, *row)
