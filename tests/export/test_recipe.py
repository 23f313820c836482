"""Recipes: what crosses to other processes gives the same plan there."""

import pytest
from pydantic import ValidationError

from sdrt.engine.preset.preset import load, preset_names
from sdrt.export.recipe import Recipe, stage_names
from sdrt.export.tensorrt.settings import Settings


@pytest.mark.parametrize("name", preset_names())
def test_json_both_ways(name: str) -> None:
    preset = load(name)
    layers = preset.dit.num_layers
    recipe = Recipe.of(
        preset,
        "cuda",
        ((0, 1), (1, layers)),
        {"dit": "tensorrt-rtx"},
        tensorrt=Settings(("sm_89",), optimization_level=3, ring="mask"),
        fp8=("qkv", "ffn_up"),
        how={"dit.attention.ring.steady": "cudnn"},
    )
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert set(recipe.backends) == set(stage_names(preset))


@pytest.mark.parametrize("backend", ["inductor", "tensorrt-rtx"])
def test_the_plan_survives_the_journey(backend) -> None:
    """A worker's plan must be the builder's: shapes, strides, calls, ranges."""
    recipe = Recipe.of(load("tiny"), "cuda", ((0, 3), (3, 8)), backend)
    here, there = recipe.plan(), Recipe.model_validate_json(recipe.model_dump_json()).plan()
    assert (here.stages, here.buffers) == (there.stages, there.buffers)
    assert (here.weights, here.baked) == (there.weights, there.baked)
    arguments = [{n: p.arguments for n, p in plan.packages.items()} for plan in (here, there)]
    assert arguments[0] == arguments[1]


def test_how_reaches_the_modules() -> None:
    """Reference: the attention that the steady block's module was made with."""
    recipe = Recipe.of(load("tiny"), how={"dit.attention.ring.steady": "cudnn"})
    plain = Recipe.of(load("tiny"))
    blocks = [r.plan().packages["dit_block.steady"].module.stage for r in (recipe, plain)]
    assert [block.attention for block in blocks] == ["cudnn", "sdpa"]


def test_what_it_does_not_know_is_refused() -> None:
    data = Recipe.of(load("tiny")).model_dump(mode="json")
    with pytest.raises(ValidationError):
        Recipe.model_validate(data | {"gates": "fb"})
