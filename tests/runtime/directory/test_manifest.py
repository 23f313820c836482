"""Manifests: every name in them means something, or they are refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdrt.engine.preset.files import preset_names
from sdrt.export.plan.eager import planned_manifest
from sdrt.runtime.directory.manifest import (
    MANIFEST_NAME,
    Manifest,
    ManifestError,
    read_manifest,
    write_manifest,
)
from sdrt.runtime.directory.specs import Replay, all_ops, op_refs
from sdrt.runtime.directory.tensors import load_weights, op_weights, weight_specs


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("backend", ["inductor", "tensorrt-rtx"])
def test_every_name_of_a_preset_is_declared(planned, preset, backend, tmp_path: Path) -> None:
    """Reference: the plan's buffers, stages and weights; nothing is declared for nobody."""
    recipe, plan = planned(preset, backend)
    manifest = planned_manifest(recipe, plan, torch.device("cpu"))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest  # it goes through all checks once more
    tracks = [track for step in manifest.steps for track in step.tracks]
    ops = [op for track in tracks for op in all_ops(track)]
    ops += [op for condition in manifest.conditions for op in condition.ops]
    replayed = {op.stage for op in ops if isinstance(op, Replay)}
    refs = [ref for op in ops for ref in op_refs(op)]
    refs += [end for track in tracks for end in (track.takes, track.gives) if end]
    refs += [ref for stage in manifest.stages for call in stage.calls for ref in call.arguments]
    buffers = {ref.name for ref in refs if ref.kind == "buffer"}
    assert replayed == {stage.name for stage in manifest.stages}
    assert buffers == set(manifest.buffers)
    assert weight_specs(manifest).keys() | op_weights(manifest) == plan.weights.keys()


@pytest.fixture(scope="module")
def tiny(planned) -> str:
    recipe, plan = planned("tiny", "inductor")
    return planned_manifest(recipe, plan, torch.device("cpu")).model_dump_json()


@pytest.fixture
def refusal(tiny: str, tmp_path: Path) -> Callable[[Callable[[dict], object]], str]:
    """Callable: change the manifest of ``tiny``, return the one line that refuses it."""

    def check(change: Callable[[dict], object]) -> str:
        data = json.loads(tiny)
        change(data)
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
        with pytest.raises(ManifestError) as caught:
            read_manifest(tmp_path)
        message = str(caught.value)
        assert "\n" not in message and "rebuild the engine" in message
        assert message.startswith(f"{tmp_path / MANIFEST_NAME}: ")
        return message

    return check


def track(data: dict, step: int, name: str) -> dict:
    return next(track for track in data["steps"][step]["tracks"] if track["name"] == name)


def first_op(data: dict, kind: str) -> dict:
    ops = (op for step in data["steps"] for t in step["tracks"] for op in t["ops"])
    return next(op for op in ops if op["op"] == kind)


NAMES = {
    "stage": (
        lambda data: first_op(data, "replay").update(stage="ditt"),
        "track encode of phase first replays no stage: ditt",
    ),
    "target": (
        lambda data: first_op(data, "noise")["target"].update(name="nose"),
        "track encode of phase first names no buffer: nose",
    ),
    "source": (
        lambda data: track(data, 1, "diffuse")["hand_over"][0]["source"].update(name="in"),
        "track diffuse of phase filling names no buffer: in",
    ),
    "rows": (
        lambda data: track(data, 2, "decode")["hand_over"][0]["source"].update(rows=[2, 3]),
        "track decode of phase filling names rows of 2 that are not there: latent.steady[2:3]",
    ),
    "no rows": (
        lambda data: track(data, 2, "decode")["hand_over"][0]["source"].update(rows=[1, 1]),
        "that are not there: latent.steady[1:1]",
    ),
    "takes": (
        lambda data: track(data, 0, "encode")["takes"].update(name="film"),
        "track encode of phase first names no buffer: film",
    ),
    "gives": (
        lambda data: track(data, 3, "decode")["gives"].update(name="film"),
        "track decode of phase steady names no buffer: film",
    ),
    "makes": (
        lambda data: data["stages"][1]["makes"].update(name="this"),
        "names no buffer: this",
    ),
    "condition": (
        lambda data: data["conditions"][0]["input"].update(name="words"),
        "condition prompt names no buffer: words",
    ),
    "condition's stage": (
        lambda data: data["conditions"][0]["ops"][0].update(stage="promt"),
        "condition prompt replays no stage: promt",
    ),
    "argument": (
        lambda data: data["stages"][0]["calls"][0]["inputs"][0].update(name="words"),
        "stage prompt names no buffer: words",
    ),
    "package": (
        lambda data: data["stages"][0]["calls"][0].update(package="txt"),
        "stage prompt does not fit package txt",
    ),
    "op": (
        lambda data: first_op(data, "noise").update(op="gate"),
        "steps.0.tracks.0.ops.0: Input tag 'gate' found using 'op' does not match",
    ),
    "field of an op": (
        lambda data: first_op(data, "noise").update(seed=1),
        "steps.0.tracks.0.ops.0.noise.seed: Extra inputs are not permitted",
    ),
    "phase": (lambda data: data["steps"][1].update(phase="full"), "steps.1.phase: Input should be"),
    "stream": (
        lambda data: track(data, 0, "encode").update(stream="copy"),
        "steps.0.tracks.0.stream: Input should be 'encode', 'diffuse' or 'decode'",
    ),
    "late start": (
        lambda data: data["steps"].pop(0),
        "AR steps start at [1, 2, 5], expected 0 and ever later ones",
    ),
    "order": (
        lambda data: data["steps"].reverse(),
        "AR steps start at [5, 2, 1, 0], expected 0 and ever later ones",
    ),
    "no steps": (lambda data: data["steps"].clear(), "AR steps start at [], expected 0"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_means_nothing_is_refused(refusal, case: str) -> None:
    change, expected = NAMES[case]
    assert expected in refusal(change)


def test_a_weight_that_ops_copy_and_no_file_holds_is_refused(tiny: str, tmp_path: Path) -> None:
    """Calls' weights have specs to be checked against; these are named only."""
    data = json.loads(tiny)
    for stage in data["stages"]:
        stage["calls"] = []
    manifest = Manifest.model_validate(data)
    assert "schedule.timesteps" in op_weights(manifest)
    with pytest.raises(
        ManifestError, match=r"weight schedule\.\w+ is missing, which AR steps copy"
    ):
        load_weights(tmp_path, manifest, torch.device("cpu"))
