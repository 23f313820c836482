"""The printed program of an engine: every phase, track, op and event in its place, a line each."""

import pytest
import torch

from sdrt.engine.preset.preset import load
from sdrt.export.plan.eager import planned_manifest
from sdrt.export.recipe import Recipe
from sdrt.runtime.directory.manifest import Manifest
from sdrt.runtime.directory.order import derive_order
from sdrt.runtime.explain import explain

ROLLOUT = ["flow=rollout", "encoder=none", "schedule.clean_pass=true", "schedule.noise_scale=null"]
STEADY = """
AR step from 5 on, steady:
  encode, on stream encode:
    wait for: encoded.timestep read by diffuse
    input frames -> frames.steady
    noise -> noise.steady
    replay taehv_encoder.steady
    record: encoded.noisy written by encode
  diffuse, on stream diffuse:
    wait for: encoded.noisy written by encode
    copy encoded.noisy -> noisy.steady
    copy encoded.timestep -> timestep
    record: encoded.timestep read by diffuse
    wait for: latent.steady read by decode
    noise -> renoise.steady
    replay dit[0:8].steady
    advance frame by 1
    record: latent.steady written by diffuse
  decode, on stream decode:
    wait for: latent.steady written by diffuse
    copy latent.steady[1:2] -> finished.steady
    record: latent.steady read by decode
    replay taehv_decoder.steady
    frames_out.steady -> output frames
"""


def program(settings: list[str]) -> tuple[Manifest, list[str]]:
    recipe = Recipe.of(load("tiny", settings))
    manifest = planned_manifest(recipe, recipe.plan(), torch.device("cpu"))
    return manifest, list(explain(manifest))


def test_the_program_of_a_stream_batch() -> None:
    """Reference: the steady step by hand; the phases by the window of 6 and two denoise steps."""
    _, lines = program([])
    assert lines[:4] == [
        "tiny: 224x128, 16 frames a second",
        "an AR step takes 8 frames, then 4 and gives 5, then 4",
        "when the prompt changes, with prompt_embeds from the host:",
        "  replay prompt",
    ]
    steps = [line for line in lines if line.startswith("AR step")]
    assert steps == [
        "AR step 0, first:",
        "AR step 1, filling:",
        "AR step 2 to 4, filling:",
        "AR step from 5 on, steady:",
    ]
    assert lines[lines.index(steps[-1]) :] == STEADY.strip().splitlines()
    second = lines[lines.index(steps[1]) : lines.index(steps[2])]
    assert "  decode, on stream decode:" not in second  # no chunk is finished yet
    rings = "    copy ring.0.k[0:6] -> ring.0.k[6:12], and 15 more like it up to ring.7.v[6:12]"
    assert rings in lines[: lines.index(steps[1])]


def test_the_program_of_a_rollout() -> None:
    """The clean pass comes last, and frames do not wait for it; there is no input."""
    _, lines = program(ROLLOUT)
    assert lines[1] == "an AR step takes none and gives 1, then 4"
    last = lines[lines.index("AR step from 5 on, steady:") :]
    tracks = [line.strip() for line in last if ", on stream " in line]
    expected = ["diffuse", "decode", "diffuse"]
    assert tracks == [
        f"{name}, on stream {stream}:"
        for name, stream in zip(("diffuse", "decode", "finalize"), expected, strict=True)
    ]
    assert last[-4:] == [
        "    copy latent -> noisy",
        "    fill 0 -> timesteps",
        "    replay dit[0:8].clean.steady",
        "    advance frame by 1",
    ]
    assert not any("input frames" in line for line in lines)


@pytest.mark.parametrize("settings", [[], ROLLOUT], ids=["stream batch", "rollout"])
def test_every_event_has_its_line(settings: list[str]) -> None:
    manifest, lines = program(settings)
    order = derive_order(manifest.steps, {stage.name: stage for stage in manifest.stages})
    for verb, marks in (("wait for", order.waits), ("record", order.records)):
        expected = [
            f"    {verb}: {event.buffer} {event.access} by {event.stream}"
            for events in marks.values()
            for event in events
        ]
        assert sorted(line for line in lines if f" {verb}: " in line) == sorted(expected)
    assert all(line == line.rstrip() and "\n" not in line for line in lines)
