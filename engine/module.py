"""The base class of everything that is exported: explicit states, no hidden ones."""

from typing import Any

import torch
from torch import Tensor, nn


class PackageModule(nn.Module):
    """A module that a package is compiled from.

    ``forward`` takes its inputs and, where the module has any, a keyword ``states``: tensors by
    name that it reads and overwrites in place. The module itself holds weights only, so that one
    module serves any number of streams and exports to a pure function of its arguments.
    """

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """Return fresh states; every state starts as zeros.

        The shapes, dtypes and strides are fixed: a session allocates them once.
        """
        return {}

    def roles(self) -> dict[str, Any]:
        """Return what the numbers of states mean, by name, where that is more than a history.

        The words are those of :data:`sdrt.runtime.directory.specs.Role`.
        """
        return {}
