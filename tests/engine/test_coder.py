"""Autoencoders: what each says of itself against what its modules do."""

from typing import get_args

import pytest
import torch

from sdrt.engine.coder import CODERS, CoderName
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.synthetic import draw

SMALL = ["stream.height=32", "stream.width=48", "wan_vae.dim=8"]
EACH = pytest.mark.parametrize("name", CODERS)


def preset_with(name: str, *changes: str):
    """Return the tiny preset with one autoencoder for both directions."""
    return load("tiny", [*SMALL, f"encoder={name}", f"decoder={name}", *changes])


def test_presets_may_name_each() -> None:
    assert get_args(CoderName) == tuple(CODERS)
    assert all(coder.name == name for name, coder in CODERS.items())


def test_no_two_share_a_name_of_what_they_own() -> None:
    """Components, stages and the weights in an engine are told apart by name."""
    names = [(c.component, c.encoder_stage, c.decoder_stage) for c in CODERS.values()]
    flat = [name for group in names for name in group]
    assert len(set(flat)) == len(flat)


@EACH
@pytest.mark.parametrize("channels", [16, 8])
@pytest.mark.parametrize("first", [True, False])
def test_geometry_is_what_the_modules_have(name: str, channels: int, first: bool) -> None:
    """Sizes of latents and pixels follow from the preset, for any number of channels."""
    sizes = [f"dit.in_dim={channels}", f"dit.out_dim={channels}"]
    preset = preset_with(
        name, *sizes, f"wan_vae.z_dim={channels}", f"taehv.latent_channels={channels}"
    )
    coder, frames = CODERS[name], preset.input_frames(first)
    latent_frames = preset.first_chunk_latent_frames if first else 1
    assert preset.coders == (coder,)
    assert coder.channels(preset) == preset.latent_channels == channels
    encoder = coder.encoder(preset, frames, first, {})
    decoder = coder.decoder(preset, latent_frames, first, {})
    shapes = coder.public_shapes(preset)
    public = {public_name: draw(public_name, shape) for public_name, shape in shapes.items()}
    weights = coder.from_public(preset, public, {})
    for module in (encoder, decoder):
        module.load_state_dict({key: weights[key] for key in module.state_dict()})
    low = -1.0 if coder.signed else 0.0
    pixels = torch.rand(frames, 3, 32, 48) * (1 - low) + low
    with torch.inference_mode():
        latents = encoder(pixels, states=encoder.states("cpu"))
        made = decoder(latents, states=decoder.states("cpu"))
    assert latents.shape == (latent_frames, *preset.latent_shape)
    assert len(made) == (preset.first_chunk_frames if first else preset.chunk_frames)
    assert made.shape[1:] == pixels.shape[1:]


@EACH
def test_mean_and_std_are_of_the_same_channels(name: str) -> None:
    coder = CODERS[name]
    assert len(coder.mean) == len(coder.std)
    assert all(value > 0 for value in coder.std)
