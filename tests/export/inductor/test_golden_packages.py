"""Golden cases on packages that the real builder compiled for the CPU, through ``Session.open``."""

import pytest
import torch
from torch import Tensor

from sdrt.engine.preset.preset import from_dict
from sdrt.runtime.session import Session

TOLERANCE = 1e-4
"""Relative; what the golden cases allow between CPUs and torch versions in float32."""

CODERS = ("taehv_", "vae_", "intake.", "mix_noise.", "frames_out.")
"""Packages around the DiT, which the streaming cases do not use."""


@pytest.mark.parametrize(
    "name",
    ["sdv2_stream_batch", "sdv2_stream_batch_sink_refresh", "self_forcing", "self_forcing_local"],
)
def test_stream_matches_the_reference(name, golden_streams, built_packages):
    """Reference: the public implementations' outputs, every AR step, the wrapped ring included."""
    preset, source = golden_streams.preset(name), golden_streams.source(name)
    engine = built_packages(preset, source, lambda package: not package.startswith(CODERS))
    with Session.open(engine) as session:
        errors = golden_streams.errors(session, name)
        assert len(errors) >= 5
        assert max(errors) <= TOLERANCE, errors
        # The states of a stream leave no trace in the next one.
        assert golden_streams.errors(session, name) == errors


@pytest.mark.parametrize("coder", ["wan-vae", "taehv"])
def test_autoencoder_matches_the_reference(
    coder, golden, golden_streams, built_packages, relative_error
):
    """Reference: the public implementations, whole clips; here the first chunk, then small ones."""
    name = {"wan-vae": "wan_vae_stream", "taehv": "taehv"}[coder]
    case = {key: _frames(tensor, coder) for key, tensor in golden(name)[0].items()}
    height, width = case["pixels"].shape[2:]
    preset = from_dict(
        {
            "name": f"golden-{coder}",
            "flow": "stream-batch",
            "precision": "fp32",
            "dit": {"dim": 16, "num_heads": 1, "ffn_dim": 16, "num_layers": 1, "text_dim": 16},
            "stream": {
                "height": height,
                "width": width,
                "chunk_latent_frames": 1,
                "window_frames": 6,
                "sink_frames": 3,
            },
            "schedule": {
                "steps": [700],
                "shift": 8.0,
                "warp": False,
                "noise_scale": 0.7,
                "clean_pass": False,
            },
            "encoder": coder,
            "decoder": coder,
            "wan_vae": golden(name)[1].get("model", {}),
            "latents": {"normalise_encoder": False, "denormalise_decoder": coder == "wan-vae"},
            "text": "hashed-words",
        }
    )
    kept = ("taehv_", "vae_")
    engine = built_packages(
        preset, golden_streams.source(name), lambda package: package.startswith(kept)
    )
    with Session.open(engine) as session:
        latents = _stream(session, "encode", "pixels_in", "latents_in", case["pixels"])
        pixels = _stream(session, "decode", "latent", "pixels_out", case["decode_latents"])
    if coder == "taehv":  # the reference clamps; here that is left to the frames' package
        pixels = pixels.clamp(0, 1)
    assert relative_error(latents, case["latents"]) <= TOLERANCE
    assert relative_error(pixels, case["decode_pixels"]) <= TOLERANCE


def _frames(tensor: Tensor, coder: str) -> Tensor:
    """Return ``[F, C, H, W]`` of a case's ``[1, C, F, H, W]`` (Wan) or ``[1, F, C, H, W]``."""
    return tensor[0].transpose(0, 1) if coder == "wan-vae" else tensor[0]


@torch.inference_mode()
def _stream(session: Session, group: str, source: str, result: str, frames: Tensor) -> Tensor:
    """Run a group's stages over all frames, as many at once as its phases take."""
    results, phase = [], "first"
    while len(frames):
        if source == "latent" and phase == "steady":
            source = "finished"
        given, made = session.buffers[f"{source}.{phase}"], session.buffers[f"{result}.{phase}"]
        count = given.shape[-4]
        given.copy_(frames[:count])
        (stage,) = (
            stage
            for stage in session.steps.stages.values()
            if (stage.spec.group, stage.spec.phase) == (group, phase)
        )
        stage.run()
        results.append(made.clone())
        frames, phase = frames[count:], "steady"
    return torch.cat(results)
