"""Plans: what a preset's packages take, how stages call them, and the flat calling convention."""

import math

import pytest
import torch
from torch import Tensor, nn

from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import Preset, load, preset_names
from sdrt.engine.weights.source import open_source
from sdrt.export.plan.builder import PlanBuilder
from sdrt.export.plan.plan import FlatModule, Plan, meta_tensor, spec_of
from sdrt.export.plan.weights import plan_weights
from sdrt.export.recipe import Recipe
from sdrt.runtime.directory.specs import all_ops, buffer, op_refs


def plan_of(preset: Preset, *ranges: tuple[int, int], device: str = "cpu") -> Plan:
    return Recipe.of(preset, device, ranges or None).plan()


class Scale(PackageModule):
    """Adds up what it was given, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return {"total": torch.zeros(2, 3, device=device)}

    def forward(self, x: Tensor, y: Tensor, *, states: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        states["total"].copy_(states["total"] + (x + y) * self.weight)
        return states["total"] * 1, x.sum(dim=1)


def test_a_flat_call_is_inputs_outputs_states_weights() -> None:
    """Reference: the module itself. Results, states and nothing else are written, in place."""
    module = Scale()
    flat = FlatModule(module, 2, 2)
    x, y, weight = torch.randn(2, 3), torch.randn(2, 3), torch.randn(3)
    total, row, state = torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3)
    before = [tensor.clone() for tensor in (x, y, weight)]
    assert list(flat.parameters()) == []
    for _ in range(2):
        assert flat(x, y, total, row, state, weight) == ()
    assert torch.allclose(state, 1 + 2 * (x + y) * weight)
    assert torch.equal(total, state) and torch.equal(row, x.sum(dim=1))
    assert all(map(torch.equal, before, (x, y, weight)))


def test_one_package_serves_many_calls() -> None:
    """Each call names its own states and weights; the shapes are the package's."""
    builder = PlanBuilder(torch.float16, channels_last_3d=False)
    for name in ("x", "y"):
        builder.buffer(name, (2, 3), torch.float32)
    builder.package("scale", Scale)
    first = builder.call("scale", ["x", "y"], ["a", "r"], states="s.0", weights="w.0")
    second = builder.call("scale", ["a", "y"], ["b", "r"], states="s.1", weights="w.1")
    names = [[str(ref) for ref in call.arguments] for call in (first, second)]
    assert names == [
        ["x", "y", "a", "r", "s.0.total", "w.0.weight"],
        ["a", "y", "b", "r", "s.1.total", "w.1.weight"],
    ]
    assert first.weights == ("w.0.weight",) and first.states == (buffer("s.0.total"),)
    plan = builder.plan
    assert list(plan.packages) == ["scale"]
    assert {name: spec.kind for name, spec in plan.buffers.items()} == {
        **dict.fromkeys(("x", "y", "a", "b", "r"), "io"),
        **dict.fromkeys(("s.0.total", "s.1.total"), "state"),
    }
    assert plan.weights["w.1.weight"].dtype == "float16"
    assert [spec.shape for spec in plan.packages["scale"].arguments] == [
        *[(2, 3)] * 3,
        *[(2,), (2, 3), (3,)],
    ]


def test_a_package_has_one_shape() -> None:
    builder = PlanBuilder(torch.float32, channels_last_3d=False)
    builder.buffer("x", (2, 3), torch.float32)
    builder.buffer("wide", (4, 3), torch.float32)
    builder.package("scale", Scale)
    builder.call("scale", ["x", "x"], ["a", "r"], states="s.0", weights="w")
    with pytest.raises(AssertionError, match="scale is called with different shapes"):
        builder.call("scale", ["wide", "wide"], ["a", "r"], states="s.0", weights="w")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_plan(name: str, device: str) -> None:
    """Without any device: every name resolves, in the declared shape, dtype and strides."""
    preset = load(name)
    plan = plan_of(preset, device=device)
    used: set[str] = set()
    for stage in plan.stages.values():
        for call in stage.calls:
            specs = plan.packages[call.package].arguments
            for ref, spec in zip(call.arguments, specs, strict=True):
                used.add(ref.name)
                if ref.kind == "weight":
                    assert plan.weights[ref.name] == spec
                    continue
                tensor = meta_tensor(plan.buffers[ref.name])
                assert spec_of(tensor if ref.rows is None else tensor[slice(*ref.rows)]) == spec
    for step in plan.steps:
        for track in step.tracks:
            used |= {ref.name for op in all_ops(track) for ref in op_refs(op)}
    assert set(plan.weights) <= used
    blocks = {stage.name for stage in plan.stages.values() if stage.group == "diffuse"}
    phases = {stage.phase for stage in plan.stages.values() if stage.group == "diffuse"}
    assert blocks == {f"dit[0:{preset.dit.num_layers}].{phase}" for phase in phases}


def test_the_number_of_layers_adds_no_packages() -> None:
    few, many = (plan_of(load("tiny", [f"dit.num_layers={n}"])) for n in (1, 8))
    assert list(few.packages) == list(many.packages)
    assert len(many.weights) > len(few.weights)


def test_ranges_split_the_calls_of_the_whole() -> None:
    """``dit[0:3]`` and ``dit[3:8]`` are the calls of ``dit[0:8]``, on the same buffers."""
    preset = load("tiny")
    whole, split = plan_of(preset), plan_of(preset, (0, 3), (3, 8))
    assert split.buffers == whole.buffers and list(split.packages) == list(whole.packages)
    for phase in ("first", "filling", "steady"):
        stage = whole.stages[f"dit[0:8].{phase}"]
        parts = [split.stages[f"dit[{blocks}].{phase}"] for blocks in ("0:3", "3:8")]
        assert tuple(call for part in parts for call in part.calls) == stage.calls


def test_the_first_chunk_runs_on_row_0_of_the_rings() -> None:
    """At batch 1, over the rings of the whole stream batch."""
    preset = load("tiny")
    plan = plan_of(preset)
    window, steps = preset.stream.window_frames, len(preset.schedule.steps)
    assert plan.buffers["ring.0.k"].shape[0] == window * steps
    first = plan.stages["dit[0:8].first"]
    blocks = [call for call in first.calls if call.package == "dit_block.first"]
    assert len(blocks) == preset.dit.num_layers
    for layer, call in enumerate(blocks):
        assert call.states == tuple(buffer(f"ring.{layer}.{part}", (0, window)) for part in "kv")


def test_phases_of_the_presets() -> None:
    phases = {
        name: {(stage.group, stage.phase) for stage in plan_of(load(name)).stages.values()}
        for name in ("tiny", "self-forcing-1.3b-480p")
    }
    assert phases["tiny"] == {
        ("prompt", "any"),
        *((group, phase) for group in ("encode", "decode") for phase in ("first", "steady")),
        *(("diffuse", phase) for phase in ("first", "filling", "steady")),
    }
    assert phases["self-forcing-1.3b-480p"] == {
        ("prompt", "any"),
        *(("decode", phase) for phase in ("first", "steady")),
        *((g, phase) for g in ("diffuse", "finalize") for phase in ("filling", "steady")),
    }


def test_the_weights_are_the_plans(recipe) -> None:
    """Every weight once, in the planned shape and dtype; synthetic ones of the same names."""
    preset = load("tiny", ["precision=bf16"])
    plan = plan_of(preset)
    for spec in ("bundled", "synthetic"):
        source = open_source(spec, preset)
        found = list(plan_weights(plan, preset, source, torch.device("cpu")))
        assert len(found) == len(plan.weights) == len(dict(found))
        for name, tensor in found:
            planned = plan.weights[name]
            assert (tuple(tensor.shape), str(tensor.dtype)) == (
                planned.shape,
                f"torch.{planned.dtype}",
            )
    stored = sum(t.numel() for name, t in found if name not in plan.tables)
    assert stored < 7e6 and math.isclose(stored, 6.7e6, rel_tol=0.1)
