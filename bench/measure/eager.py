"""A session over the eager modules: the reference that compiled packages are compared with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sdrt.engine.weights.source import Source
from sdrt.export.plan.eager import rehearsal
from sdrt.export.plan.plan import FlatModule, Plan
from sdrt.export.plan.weights import plan_weights
from sdrt.export.recipe import Recipe
from sdrt.kernels.dispatch import references
from sdrt.runtime.session import Session


class EagerProgram:
    """A module behind the interface of a package; every op runs its plain reference."""

    def __init__(self, module: FlatModule) -> None:
        self._module = module

    def run(self, arguments: Sequence[Tensor]) -> None:
        with references():
            self._module(*arguments)


def place_weights(
    plan: Plan, recipe: Recipe, source: Source, device: torch.device
) -> dict[str, Tensor]:
    """Return a plan's weights on a device, in the strides that its packages take."""
    placed = {}
    for name, tensor in plan_weights(plan, recipe.preset, source, device, choices=recipe.how):
        stride = plan.weights[name].stride
        target = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device)
        placed[name] = target.copy_(tensor)
    return placed


@torch.inference_mode()
def eager_session(
    recipe: Recipe,
    weights: Mapping[str, Tensor] | Source,
    device: str = "cpu",
) -> Session:
    """Return a session that runs the eager modules stage by stage, without graphs.

    Args:
        recipe: of packages that take their weights as arguments.
        weights: a source to convert, or the placed weights of another session, to share.
    """
    target, plan = torch.device(device), recipe.plan()
    if isinstance(weights, Mapping):
        placed = weights
    else:
        placed = place_weights(plan, recipe, weights, target)
    programs = {name: EagerProgram(package.module) for name, package in plan.packages.items()}
    return rehearsal(recipe, plan, programs, placed, target)
