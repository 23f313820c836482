"""Eager sessions of presets that no engine is built of in the tests."""

import numpy as np
import pytest
import torch

from sdrt.bench.measure.eager import eager_session
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.recipe import Recipe

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
