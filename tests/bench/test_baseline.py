"""The references' way of running, against the eager modules: the same video from the same seed."""

import pytest
import torch

from sdrt.bench.baseline.stream import ReferenceStream
from sdrt.bench.measure.eager import eager_session
from sdrt.bench.measure.frames import chunks_for
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.recipe import Recipe

SMALL = [
    *("dit.dim=48", "dit.num_heads=4", "dit.ffn_dim=64", "dit.num_layers=3", "dit.freq_dim=16"),
    *("dit.text_len=4", "dit.text_dim=16", "text=hashed-words", "wan_vae.dim=8"),
    *("stream.height=32", "stream.width=48", "precision=fp32"),
]
CASES = {
    "stream-batch": ("sdv2-1.3b-480p", SMALL, 9),
    "three steps": ("sdv2-1.3b-480p", [*SMALL, "schedule.steps=[700,500,400]"], 9),
    "rollout": (
        "self-forcing-1.3b-480p",
        [*SMALL, "stream.window_frames=7", "stream.sink_frames=1"],
        5,
    ),
    "taehv": ("tiny", ["dit.num_layers=2", "stream.height=64", "stream.width=64"], 8),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_same_video_as_the_eager_modules(case, relative_error) -> None:
    name, overrides, steps = CASES[case]
    preset = load(name, overrides)
    source = open_source("synthetic", preset)
    session = eager_session(Recipe.of(preset), source)
    session.prepare("neon discs", seed=3)
    reference = ReferenceStream(
        preset, source, torch.device("cpu"), session.buffers["prompt_embeds"].clone()
    )
    reference.prepare("neon discs", seed=3)
    chunks = chunks_for(session)
    for index in range(steps):
        assert reference.chunk_frames() == session.chunk_frames()
        frames = next(chunks)
        session.submit(frames)
        expected = session.receive()
        reference.submit(frames)
        found = reference.receive()
        names = ["latent"] if "latent" in session.buffers else ["latent.first", "latent.steady"]
        latent = session.buffers[names[min(index, len(names) - 1)]]
        error = relative_error(reference.latent, latent)
        assert error < 1e-4, f"AR step {index}"
        assert found.steady == expected.steady
        assert len(found.frames) == len(expected.frames)
        if len(found.frames):
            difference = found.frames.astype(int) - expected.frames
            assert abs(difference).max() <= 1


def _golden_stream(golden_streams, name: str) -> tuple[ReferenceStream, dict, dict]:
    tensors, case = golden_streams.golden(name)
    preset, source = golden_streams.preset(name), golden_streams.source(name)
    stream = ReferenceStream(preset, source, torch.device("cpu"), tensors["prompt_embeds"])
    stream.prepare("unused")
    return stream, tensors, case


@pytest.mark.parametrize("name", ["sdv2_stream_batch", "sdv2_stream_batch_sink_refresh"])
@torch.inference_mode()
def test_golden_stream_batch(name, golden_streams, relative_error) -> None:
    stream, tensors, case = _golden_stream(golden_streams, name)
    steps = len(case["denoising_steps"])
    first = list(tensors["first_renoise"].reshape(steps - 1, *tensors["first_noisy"].shape))
    noises = iter([*first, torch.zeros_like(first[0]), *tensors["chunk_renoise"].flatten(1, 2)])

    def noise(shape) -> torch.Tensor:
        given = next(noises)
        return torch.cat([given, torch.zeros(shape[0] - len(given), *shape[1:])])

    stream._noise = noise
    stream.latent = stream._diffuse(tensors["first_noisy"], None)
    errors = [relative_error(stream.latent, tensors["first_x0"])]
    stream._finalize()
    for index, noisy in enumerate(tensors["chunk_noisy"]):
        timestep = tensors["chunk_timestep"][index].reshape(1).float()
        stream.latent = stream._diffuse(noisy.unsqueeze(0), timestep)
        errors.append(relative_error(stream.latent, tensors["chunk_hidden"][index]))
        stream._finalize()
    assert max(errors) < 1e-4


@pytest.mark.parametrize("name", ["self_forcing", "self_forcing_local"])
@torch.inference_mode()
def test_golden_rollout(name, golden_streams, relative_error) -> None:
    stream, tensors, _ = _golden_stream(golden_streams, name)
    noises = []
    for chunk, renoise in zip(tensors["noise"], tensors["renoise"], strict=True):
        noises += [chunk, *renoise, torch.zeros_like(chunk)]
    remaining = iter(noises)
    stream._noise = lambda shape: next(remaining).reshape(shape)
    for x0 in tensors["x0"]:
        stream.latent = stream._diffuse_rollout()
        assert relative_error(stream.latent[0], x0) < 1e-4
        stream._finalize()
