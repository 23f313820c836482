"""A session over the eager modules: the reference that compiled packages are compared with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sdrt.engine.weights.source import Source
from sdrt.export.plan.eager import eager_programs, rehearsal
from sdrt.export.plan.plan import Plan
from sdrt.export.plan.weights import plan_weights
from sdrt.export.recipe import Recipe
from sdrt.runtime.engine import Engine
from sdrt.runtime.session import Session


def place_weights(
    plan: Plan, recipe: Recipe, source: Source, device: torch.device
) -> dict[str, Tensor]:
    """Return a plan's weights on a device: in the strides that packages take, and baked ones."""
    placed = baked_weights(plan, recipe, source, device)
    for name, tensor in plan_weights(plan, recipe.preset, source, device, choices=recipe.how):
        stride = plan.weights[name].stride
        target = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device)
        placed[name] = target.copy_(tensor)
    return placed


def baked_weights(
    plan: Plan, recipe: Recipe, source: Source, device: torch.device
) -> dict[str, Tensor]:
    """Return the weights on a device that become part of compiled files."""
    return dict(plan_weights(plan, recipe.preset, source, device, baked=True, choices=recipe.how))


def engine_weights(engine: Engine) -> dict[str, Tensor]:
    """Return an engine's weights; those in its TensorRT plans come from where it was built from.

    Raises:
        WeightsError: that is not here any more.
    """
    recipe = Recipe.model_validate(engine.manifest.recipe)
    source = Source(recipe.preset, engine.manifest.weights.sources)
    return baked_weights(recipe.plan(), recipe, source, engine.device) | dict(engine.weights)


@torch.inference_mode()
def eager_session(
    recipe: Recipe,
    weights: Mapping[str, Tensor] | Source,
    device: str = "cpu",
) -> Session:
    """Return a session that runs the eager modules stage by stage, without graphs.

    Args:
        recipe: with any backends: what TensorRT is given differs from Inductor's modules.
        weights: a source to convert, or what :func:`place_weights` and :func:`engine_weights`
            return, to share it.
    """
    target, plan = torch.device(device), recipe.plan()
    if isinstance(weights, Mapping):
        placed = weights
    else:
        placed = place_weights(plan, recipe, weights, target)
    return rehearsal(recipe, plan, eager_programs(plan, placed), placed, target)
