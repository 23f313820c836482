"""A plan in the making: its recipe, and the builder that collects it."""

from typing import TYPE_CHECKING

import torch

from sdrt.export.plan.builder import PlanBuilder
from sdrt.runtime.directory.specs import Ref, Role

if TYPE_CHECKING:  # a recipe makes plans
    from sdrt.export.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Draft:
    """What flows and stages share while they lay out a plan."""

    def __init__(self, recipe: "Recipe") -> None:
        """Start the plan of a recipe."""
        self.recipe, self.preset = recipe, recipe.preset
        self.ranges, self.how = recipe.ranges, recipe.how
        self.dtype = DTYPES[recipe.preset.precision]
        self.builder = PlanBuilder(self.dtype, channels_last_3d=recipe.device == "cuda")
        self.steps = len(recipe.preset.schedule.steps)
        """Denoise steps of a chunk."""

    def latents(self, name: str, *leading: int, role: Role = "latent", state: bool = False) -> Ref:
        """Declare a float32 buffer of latents ``[*leading, C, h, w]``."""
        shape = (*leading, *self.preset.latent_shape)
        return self.builder.buffer(name, shape, torch.float32, role, "state" if state else "io")
