"""The check of every stage in onnxruntime: it passes on real stages, and finds what is planted."""

import threading
from pathlib import Path

import pytest
import torch

from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.plan.weights import plan_weights
from sdrt.export.recipe import Recipe
from sdrt.export.store import write_weights
from sdrt.export.tensorrt.settings import Settings

for optional in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(optional, reason="the extra `tensorrt-rtx` is not installed")

from sdrt.export.tensorrt import check as stage_check  # noqa: E402
from sdrt.export.tensorrt import worker as tensorrt_worker  # noqa: E402
from sdrt.export.tensorrt.check import StageCheck  # noqa: E402
from sdrt.export.tensorrt.onnxruntime import TOLERANCE, CheckError, OrtProgram  # noqa: E402

SETTINGS = ["dit.num_layers=2", "precision=fp32"]


def recipe_of(preset, **settings) -> Recipe:
    return Recipe.of(preset, "cpu", ((0, 1), (1, 2)), "tensorrt-rtx", **settings)


def planned(overrides: list[str], name: str = "tiny"):
    """Return a preset in float32, its plan in two ranges, and noise for its weights."""
    preset = load(name, [*SETTINGS, *overrides])
    plan = recipe_of(preset).plan()
    source = open_source("synthetic", preset)
    weights = dict(plan_weights(plan, preset, source, torch.device("cpu"), baked=True))
    return preset, plan, weights


ROLLOUT = ["flow=rollout", "encoder=none", "schedule.clean_pass=true", "schedule.noise_scale=null"]


@pytest.mark.parametrize(
    "overrides", [[], ["stream.sink_refresh_threshold=0.9"], ROLLOUT], ids=["", "sink", "rollout"]
)
def test_stages_agree(overrides: list[str]):
    """Reference: the eager modules; both flows, adaptive sink, a range after another."""
    preset, plan, weights = planned(overrides)
    check = StageCheck(preset, plan)
    for name, package in plan.packages.items():
        error = check.run(name, {weight: weights[weight] for weight in package.baked.values()})
        assert 0 < error <= TOLERANCE, name


@pytest.mark.parametrize("where", ["result", "ring", "integer", "nan"])
def test_a_planted_error_is_found(where: str, monkeypatch):
    """In what a stage returns, in the part of the ring that it wrote, in an index."""
    preset, plan, weights = planned([])
    name = "dit_range.chunk.0-1"
    package = plan.packages[name]
    flat = package.module
    argument = {
        "result": flat.inputs,  # the residual stream
        "nan": flat.inputs,
        "ring": flat.inputs + flat.outputs + flat.state_names.index("ring.bhnd.0.k"),
        "integer": flat.inputs + 5,  # valid tokens
    }[where]

    class Off(OrtProgram):
        def run(self, arguments) -> None:
            before = arguments[argument].clone()
            super().run(arguments)
            made = arguments[argument]
            made += torch.where(made == before, 0, made * 1e-3).to(made.dtype)
            if where == "integer":
                made += 1
            if where == "nan":
                made[0, 0, 0] = torch.nan

    monkeypatch.setattr(stage_check, "OrtProgram", Off)
    own = {weight: weights[weight] for weight in package.baked.values()}
    with pytest.raises(
        CheckError, match=r"in onnxruntime .* is off by .* 1e-04 is allowed"
    ) as found:
        StageCheck(preset, plan).run(name, own)
    names = {
        "result": "x.chunk.1",
        "nan": "x.chunk.1",
        "ring": "ring.bhnd.0.k",
        "integer": "valid.chunk",
    }
    assert names[where] in str(found.value) and "\n" not in str(found.value)


class Requests:
    """The builder's requests, all at once; the child's answers."""

    def __init__(self, *requests: object) -> None:
        self.requests, self.answers, self.ended = requests, [], threading.Event()

    def __iter__(self):
        return iter(self.requests)

    def answer(self, message: dict) -> None:
        self.answers.append(message)


@pytest.fixture
def setup(tmp_path: Path) -> dict:
    """What a build's child is told, with weights in place."""
    preset, plan, weights = planned([])
    write_weights(tmp_path / "baked", iter(weights.items()))
    for folder in ("packages", "onnx"):
        (tmp_path / folder).mkdir()
    return {
        "recipe": recipe_of(preset, tensorrt=Settings(("sm_89",))).model_dump(mode="json"),
        "folder": str(tmp_path),
        "weights": str(tmp_path / "baked" / "weights"),
    }


def test_the_builds_child_answers(setup: dict, monkeypatch):
    """The same check serves the build: an error of 1e-4 and less, or one line."""
    name = "prompt_range.0-1"
    requests = Requests(setup, {"check": name})
    tensorrt_worker.serve(requests)  # type: ignore[arg-type]
    (answer,) = requests.answers
    assert 0 < answer["error_found"] <= TOLERANCE
    monkeypatch.setattr(stage_check, "TOLERANCE", 1e-12)
    requests = Requests(setup, {"check": name})
    tensorrt_worker.serve(requests)  # type: ignore[arg-type]
    assert "1e-12 is allowed" in requests.answers[0]["error"]


def test_other_scales_are_other_plans(setup: dict, monkeypatch):
    """A plan that is there is taken over with the same weights and FP8 scales only."""
    monkeypatch.setattr(tensorrt_worker, "load_library", lambda backend: None)
    built: list[dict] = []

    def build_one(trt, package, weights, largest, *rest):
        built.append(largest)
        raise tensorrt_worker.PlanError("far enough")

    monkeypatch.setattr(tensorrt_worker, "build_one", build_one)
    name, weight = "dit_range.chunk.0-1", "block.0.ffn.0.weight"
    worker = tensorrt_worker.Worker(setup, Requests())  # type: ignore[arg-type]
    files = tensorrt_worker.WeightFiles(Path(setup["weights"]))
    weights = files.load(worker._plan.packages[name].baked.values())
    scales = {f"{weight}.largest": torch.tensor(3.0)}
    digest = tensorrt_worker.weights_sha256(weights | scales)
    assert worker.build(name, digest, {weight: 3.0}) == {"known": digest}
    for other in ({weight: 3.5}, {}):
        with pytest.raises(tensorrt_worker.PlanError, match="far enough"):
            worker.build(name, digest, other)
    assert built == [{weight: 3.5}, {}]


def test_a_full_disk_in_the_child_is_one_line(setup: dict, monkeypatch):
    """Writing a graph or a plan may be what fills the disk."""

    def build_one(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorrt_worker, "build_one", build_one)
    monkeypatch.setattr(tensorrt_worker, "load_library", lambda backend: None)
    request = {"name": "prompt_range.0-1", "known": None, "largest": {}}
    requests = Requests(setup, request)
    tensorrt_worker.serve(requests)  # type: ignore[arg-type]
    assert requests.answers == [
        {"error": "cannot be written (No space left on device)", "disk_full": True}
    ]
