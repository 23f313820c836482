"""A plan in the making: its recipe, and the builder that collects it."""

from typing import TYPE_CHECKING

import torch

from sdrt.engine.solvers.registry import make_solver
from sdrt.export.plan.builder import PlanBuilder
from sdrt.runtime.directory.specs import Ref, Role

if TYPE_CHECKING:  # a recipe makes plans
    from sdrt.export.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def table(column: str) -> str:
    """Return the weight that holds a column of the solver's."""
    return f"schedule.{column}"


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
        self.solver = make_solver(recipe.preset.schedule)
        self.columns = self.solver.tables()
        """What the solver takes, by name, with a row a denoise step; timesteps come first."""
        for name, column in self.columns.items():
            self.builder.table(table(name), column)

    def row(self, suffix: str = "") -> list[Ref]:
        """Declare buffers for one row of the solver's columns, and return them in order."""
        roles: list[Role] = ["timestep", *["sigma"] * (len(self.columns) - 1)]  # type: ignore
        return [
            self.builder.buffer(f"{name}{suffix}", (1, *column.shape[1:]), column.dtype, role)
            for (name, column), role in zip(self.columns.items(), roles, strict=True)
        ]

    def noise(self, name: str, rows: int, frames: int) -> list[Ref]:
        """Declare the noise of a pass, if the solver draws any."""
        return [self.latents(name, rows, frames, role="noise")] if self.solver.draws else []

    def latents(self, name: str, *leading: int, role: Role = "latent", state: bool = False) -> Ref:
        """Declare a float32 buffer of latents ``[*leading, C, h, w]``."""
        shape = (*leading, *self.preset.latent_shape)
        return self.builder.buffer(name, shape, torch.float32, role, "state" if state else "io")
