"""Errors of single stages, between eager sessions of the tiny preset."""

from types import MethodType

import pytest
import torch

from sdrt.bench.measure.eager import eager_session
from sdrt.bench.measure.frames import chunks_for
from sdrt.bench.measure.stage_errors import _steady_passes, compared_stages
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.recipe import Recipe

ROLLOUT = ["flow=rollout", "encoder=none", "schedule.clean_pass=true", "schedule.noise_scale=null"]


def _session(overrides, precision):
    preset = load("tiny", [*overrides, f"precision={precision}"])
    return eager_session(Recipe.of(preset), open_source("synthetic", preset))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ["encode", "diffuse", "decode"]),
        (ROLLOUT, ["diffuse", "finalize", "decode"]),
    ],
    ids=["stream batch", "rollout"],
)
def test_each_stage_has_its_own_rounding_and_no_more(overrides, expected) -> None:
    """Reference: bfloat16 has a relative precision of 2^-9; what a stream gathers is larger."""
    exact, rounded, twin = (_session(overrides, name) for name in ("fp32", "bf16", "fp32"))
    exact.prepare("neon discs", seed=0)
    rounded.prepare("another prompt", seed=1)  # it takes all of the other's buffers
    twin.prepare("another prompt", seed=1)
    source = chunks_for(exact)
    with compared_stages(exact, {"bf16": rounded, "fp32": twin}) as found:
        for _ in range(8):
            exact.step(next(source))
    assert sorted(found) == sorted(expected)
    for stage, errors in found.items():
        assert 1e-4 < max(errors["bf16"]) < 5e-2, stage
        assert max(errors["fp32"]) == 0, stage
    before = [op.run for ops in _steady_passes(exact) for op in ops]
    assert all(isinstance(run, MethodType) for run in before), "the comparison is left behind"


def test_first_chunks_are_not_compared() -> None:
    """The window is not full yet: nothing is steady."""
    exact, other = _session([], "fp32"), _session([], "bf16")
    exact.prepare("neon discs", seed=0)
    with torch.inference_mode(), compared_stages(exact, {"bf16": other}) as found:
        exact.step(next(chunks_for(exact)))
    assert found == {}
