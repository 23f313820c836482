"""Backends: which builds which stage, and what they refuse before any work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.backends import BACKENDS, backends_of, choose_backends
from sdrt.export.errors import BackendError
from sdrt.export.recipe import Recipe
from sdrt.export.request import Request, build_key
from sdrt.export.tensorrt import settings
from sdrt.export.tensorrt.settings import Settings
from sdrt.runtime.programs.loaders import LOADERS

CPU = torch.device("cpu")


def request_for(recipe: Recipe, **changes) -> Request:
    source = open_source("synthetic", recipe.preset)
    return Request(recipe, source, Path("unused"), CPU, **changes)


def test_what_is_built_can_be_loaded() -> None:
    assert BACKENDS.keys() == LOADERS.keys()
    assert all(name == backend.name for name, backend in BACKENDS.items())


def test_a_stage_may_have_a_backend_of_its_own() -> None:
    chosen = choose_backends(load("tiny"), "inductor", ["dit=tensorrt"])
    assert chosen == {"taehv_encoder": "inductor", "dit": "tensorrt", "taehv_decoder": "inductor"}
    recipe = Recipe.of(load("tiny"), backends=chosen)
    assert [backend.name for backend in backends_of(recipe)] == ["inductor", "tensorrt"]


@pytest.mark.parametrize(
    ("backend", "stages", "reason"),
    [
        (
            "cuda",
            [],
            "backend 'cuda': no such backend; use one of inductor, tensorrt, tensorrt-rtx",
        ),
        ("inductor", ["dit=x"], "backend 'x': no such backend"),
        ("inductor", ["vae_decoder=tensorrt"], "no such stage; this preset has taehv_encoder, dit"),
        (
            "tensorrt-rtx",
            ["dit=tensorrt"],
            "backends tensorrt and tensorrt-rtx in one engine: choose one of them",
        ),
    ],
)
def test_wrong_choices(backend: str, stages: list[str], reason: str) -> None:
    with pytest.raises(BackendError) as refused:
        choose_backends(load("tiny"), backend, stages)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("backend", "precision", "targets", "reason"),
    [
        ("tensorrt-rtx", "bf16", ("sm_86", "sm_89"), "sm_86 has no FP8; it takes one of sm_89"),
        ("tensorrt-rtx", "fp32", ("sm_89",), "precision is fp32; use --set precision=bf16"),
        ("inductor", "bf16", (), "stage dit is built by inductor; only TensorRT plans take FP8"),
    ],
)
def test_where_there_is_no_fp8(backend, precision, targets, reason, monkeypatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: object())
    preset = load("tiny", [f"precision={precision}"])
    recipe = Recipe.of(preset, backends=backend, tensorrt=Settings(targets), fp8=("qkv",))
    with pytest.raises(BackendError) as refused:
        BACKENDS[backend].check(request_for(recipe))
    assert str(refused.value).startswith("--fp8: ") and reason in str(refused.value)
    plain = recipe.model_copy(update={"fp8": ()})
    BACKENDS[backend].check(request_for(plain))


def test_inductor_needs_nothing(monkeypatch) -> None:
    """Reference: an install without any extra, as an empty search for modules."""
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    BACKENDS["inductor"].check(request_for(Recipe.of(load("tiny"))))
    plans = Recipe.of(load("tiny"), backends="tensorrt-rtx")
    with pytest.raises(BackendError, match="--backend tensorrt-rtx needs .*onnxruntime"):
        BACKENDS["tensorrt-rtx"].check(request_for(plans, check_onnx=True))


def test_only_portable_backends_make_a_machine_of_a_target() -> None:
    """The manifest names the cards where all files run on them, and else the machine here."""
    targets = Settings(("sm_89", "sm_120"))
    recipe = Recipe.of(load("tiny"), "cuda", backends="tensorrt-rtx", tensorrt=targets)
    machine = request_for(recipe).machine()
    assert (machine.type, machine.name, machine.targets) == (
        "cuda",
        "sm_89, sm_120",
        targets.targets,
    )
    mixed = Recipe.of(load("tiny"), "cuda", backends={"dit": "tensorrt-rtx"}, tensorrt=targets)
    assert request_for(mixed).machine().type == "cpu"


def test_the_compiler_is_part_of_the_key_where_it_compiles(monkeypatch) -> None:
    request = request_for(Recipe.of(load("tiny")))
    plans = replace(request, recipe=Recipe.of(load("tiny"), backends="tensorrt"))
    before = [build_key(one) for one in (request, plans)]
    monkeypatch.setenv("CXX", "another-c++")
    assert [build_key(one) == key for one, key in zip((request, plans), before, strict=True)] == [
        False,
        True,
    ]
