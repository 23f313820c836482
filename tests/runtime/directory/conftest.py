"""Plans of the presets, made once for all tests here."""

from collections.abc import Callable
from functools import cache

import pytest

from sdrt.engine.preset.preset import load
from sdrt.export.plan.plan import Plan
from sdrt.export.recipe import Recipe
from sdrt.export.tensorrt.stages import default_ranges
from sdrt.runtime.directory.contents import Backend


@pytest.fixture(scope="session")
def planned() -> Callable[[str, Backend], tuple[Recipe, Plan]]:
    """Callable: preset and backend of all stages -> recipe and plan, for a GPU."""

    @cache
    def plan(preset: str, backend: Backend) -> tuple[Recipe, Plan]:
        loaded = load(preset)
        ranges = None if backend == "inductor" else default_ranges(loaded.dit.num_layers)
        recipe = Recipe.of(loaded, "cuda", ranges, backend)
        return recipe, recipe.plan()

    return plan
