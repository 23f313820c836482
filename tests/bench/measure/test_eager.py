"""Eager sessions: of presets that no engine is built of in the tests, and of any backends."""

import numpy as np
import pytest
import torch

from sdrt.bench.measure.eager import eager_session, engine_weights
from sdrt.bench.measure.fidelity import measure_fidelity
from sdrt.bench.measure.frames import chunks_for
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.recipe import Recipe
from sdrt.kernels.measure import relative_error
from sdrt.runtime.directory.manifest import WeightsSpec
from sdrt.runtime.session import Session

SMALL = ["stream.height=32", "stream.width=48", "dit.num_layers=1", "wan_vae.dim=8"]
EIGHT = ["dit.in_dim=8", "dit.out_dim=8"]


@pytest.mark.parametrize(
    "changes",
    [
        ["taehv.latent_channels=8"],
        ["encoder=wan-vae", "decoder=wan-vae", "wan_vae.z_dim=8"],
    ],
    ids=["taehv", "wan-vae"],
)
def test_latents_may_have_other_channels_than_16(changes: list[str]) -> None:
    """Planned from the preset alone, streamed past the window with weights of noise."""
    preset = load("tiny", [*SMALL, *EIGHT, *changes])
    session = eager_session(Recipe.of(preset), open_source("synthetic", preset))
    assert session.buffers["latent.steady"].shape == (2, 1, 8, 4, 6)
    session.prepare("a fox", seed=0)
    generator = np.random.default_rng(0)
    made = []
    for _ in range(preset.stream.window_frames + 1):
        shape = (session.chunk_frames(), 32, 48, 3)
        frames = session.step(generator.integers(0, 256, shape, dtype=np.uint8))
        made.append(len(frames))
    assert made[0] == preset.first_chunk_frames and made[-1] == preset.chunk_frames
    latent = session.buffers["latent.steady"]
    assert torch.isfinite(latent).all() and latent.std() > 0


TINY = [
    *("dit.dim=48", "dit.num_heads=4", "dit.ffn_dim=64", "dit.num_layers=2", "dit.freq_dim=16"),
    *("dit.text_len=4", "dit.text_dim=16", "stream.height=32", "stream.width=48"),
    *("taehv.encoder_width=8", "taehv.decoder_widths=[8, 8, 8, 8]"),
]
ROLLOUT = ["flow=rollout", "encoder=none", "schedule.clean_pass=true", "schedule.noise_scale=null"]
ROUNDING = 1e-5
"""What float32 loses over an AR step and those that its latents go through, with room."""


def small_session(settings: list[str], backends, ranges=None) -> Session:
    preset = load("tiny", [*TINY, *settings])
    source = open_source("synthetic", preset)
    return eager_session(Recipe.of(preset, "cpu", ranges, backends), source)


@pytest.mark.parametrize(
    ("settings", "backends"),
    [
        ([], "tensorrt-rtx"),
        ([], {"dit": "tensorrt-rtx"}),
        (["stream.sink_refresh_threshold=0.9"], "tensorrt-rtx"),
        (ROLLOUT, "tensorrt-rtx"),
        (ROLLOUT, {"taehv_decoder": "tensorrt-rtx"}),
    ],
    ids=["stream batch", "its DiT", "adaptive sink", "rollout", "its decoder"],
)
def test_what_tensorrt_is_given_streams_as_inductors_modules_do(settings, backends) -> None:
    """Reference: an eager session of the same preset for Inductor, past the full window."""
    plain = small_session(settings, "inductor")
    with small_session(settings, backends, ((0, 1), (1, 2))) as baked:
        for session in (plain, baked):
            session.prepare("neon discs", seed=0)
        chunks = chunks_for(plain)
        for index in range(9):
            frames = next(chunks)
            shown = [session.step(frames).astype(int) for session in (plain, baked)]
            latents = [session.steps.result("diffuse", index) for session in (plain, baked)]
            assert relative_error(latents[1], latents[0]) < ROUNDING
            assert shown[0].shape == shown[1].shape
            assert np.abs(shown[0] - shown[1]).max(initial=0) <= 1


@pytest.mark.parametrize("settings", [[], ROLLOUT], ids=["stream batch", "rollout"])
def test_the_fidelity_of_tensorrt_engines(settings: list[str]) -> None:
    """Half-precision eager modules stand for the plans: no error beside the eager ones, and
    bfloat16's (2^-9, which a stream adds up) beside float32. Weights come from their sources."""
    with small_session([*settings, "precision=bf16"], "tensorrt-rtx") as session:
        engine = session.engine
        preset = load("tiny", [*TINY, *settings])
        sources = dict(open_source("synthetic", preset).specs)
        weights = WeightsSpec(sources=sources, synthetic=True, files=())
        engine.manifest = engine.manifest.model_copy(update={"weights": weights})
        engine.weights = {n: w for n, w in engine.weights.items() if n.startswith("schedule.")}
        baked = engine_weights(engine)
        assert baked["block.0.ffn.0.weight"].dtype == torch.bfloat16
        found = measure_fidelity(session, 8)
    assert found["replay_equals_direct"]
    assert max(found["packages_vs_eager"]["latent_error"]) == 0
    errors = found["packages_vs_fp32"]["latent_error"]
    assert errors == found["eager_vs_fp32"]["latent_error"] and 1e-4 < max(errors) < 0.1
    expected = ["decode", "diffuse", "finalize" if settings else "encode"]
    assert sorted(found["stages_vs_fp32"]) == expected
    for stage, sessions in found["stages_vs_fp32"].items():
        assert sessions["packages"] == sessions["eager"], stage
        assert 0 < max(sessions["eager"]) < 5e-2, stage
