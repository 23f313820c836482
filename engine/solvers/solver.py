"""What a solver is: the arithmetic of one denoise step once the DiT has given its flow."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Solver(nn.Module):
    """Takes a latent to the next noise level; what differs from step to step are its arguments.

    So one compiled package serves all denoise steps: it is called with a row of the tables, on
    the device. The part after the head of a pass is the solver's; two passes of a step, such as
    those of guidance, would be joined to one flow before it.
    """

    draws: ClassVar[bool]
    """Whether a step takes noise, as its last argument."""

    @abstractmethod
    def tables(self) -> dict[str, Tensor]:
        """Return the steps' columns by name, float32, each with a row a denoise step.

        The first is ``timesteps`` ``[n, 1]``, which the embeddings take too. :meth:`forward`
        takes a row of each, in order.
        """

    @abstractmethod
    def forward(self, flow: Tensor, latent: Tensor, *row: Tensor) -> Tensor:
        """Return the latent at the next noise level; after the last step, the finished one.

        Args:
            flow: float32 ``[B, F, C, h, w]``, the DiT's of ``latent``.
            latent: float32 ``[B, F, C, h, w]``, at the noise level of the row's timestep.
            row: of each table, ``[B, ...]``; then, if the solver ``draws``, noise like ``latent``.
        """
