"""TAEHV against the public reference's golden case, and streaming against whole clips."""

import pytest
import torch
from torch import Tensor

from sdrt.engine.how import NOTHING, How
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import TaehvConfig
from sdrt.engine.taehv import model as taehv
from sdrt.engine.taehv.model import FIRST, FUSED, LAST, TaehvDecoder, TaehvEncoder, TaehvError

TOLERANCE = 1e-4
"""Relative; what the golden cases allow between CPUs and torch versions in float32."""

SMALL = TaehvConfig(encoder_width=8, decoder_widths=(24, 16, 8, 8))
HEIGHT, WIDTH = 32, 48
ALL_FUSED = {FIRST: FUSED, LAST: FUSED}


def load(module: PackageModule, weights: dict[str, Tensor]) -> PackageModule:
    """Fill a module with its own names out of ``weights``, as the stages share one file."""
    names = module.state_dict().keys()
    module.load_state_dict({name: weights[name] for name in names}, strict=True, assign=True)
    return module.requires_grad_(False)


def encode(
    config: TaehvConfig,
    weights: dict[str, Tensor],
    pixels: Tensor,
    calls: list[int],
    how: How = NOTHING,
):
    """Encode ``[F, 3, H, W]`` in calls of so many frames; returns all latents and the states."""
    height, width = pixels.shape[2:]
    latents: list[Tensor] = []
    states: dict[str, Tensor] = {}
    for index, chunk in enumerate(pixels.split(calls)):
        encoder = TaehvEncoder(config, height, width, len(chunk), index == 0, how)
        load(encoder, weights)
        states = states or encoder.states("cpu")
        latents.append(encoder(chunk, states=states))
    return torch.cat(latents), states


def decode(
    config: TaehvConfig,
    weights: dict[str, Tensor],
    latents: Tensor,
    calls: list[int],
    how: How = NOTHING,
):
    """Decode ``[N, 16, h, w]`` in calls of so many latents; returns all pixels and the states."""
    height, width = 8 * latents.shape[2], 8 * latents.shape[3]
    pixels: list[Tensor] = []
    states: dict[str, Tensor] = {}
    for index, chunk in enumerate(latents.split(calls)):
        decoder = TaehvDecoder(config, height, width, len(chunk), index == 0, how)
        load(decoder, weights)
        states = states or decoder.states("cpu")
        pixels.append(decoder(chunk, states=states))
    return torch.cat(pixels), states


@pytest.fixture(scope="module")
def case(golden, recipe):
    tensors, about = golden("taehv")
    return tensors, recipe.synthetic_state_dict(about["parameters"], about["seed"])


@pytest.fixture(scope="module")
def small(recipe) -> dict[str, Tensor]:
    return taehv.from_public(SMALL, recipe.synthetic_state_dict(taehv.public_shapes(SMALL), 3))


def test_names_and_shapes_are_the_public_ones(golden) -> None:
    _, about = golden("taehv")
    expected = {name: tuple(shape) for name, shape in about["parameters"].items()}
    assert taehv.public_shapes(TaehvConfig()) == expected


@pytest.mark.parametrize("calls", [[16], [4, 8, 4]])
def test_encoder_is_the_reference(case, relative_error, calls) -> None:
    tensors, public = case
    weights = taehv.from_public(TaehvConfig(), public)
    latents, _ = encode(TaehvConfig(), weights, tensors["pixels"][0], calls)
    assert latents.dtype == torch.float32
    assert relative_error(latents, tensors["latents"][0]) <= TOLERANCE


@pytest.mark.parametrize("calls", [[6], [1, 2, 3]])
def test_decoder_is_the_reference(case, relative_error, calls) -> None:
    tensors, public = case
    weights = taehv.from_public(TaehvConfig(), public)
    pixels, _ = decode(TaehvConfig(), weights, tensors["decode_latents"][0], calls)
    pixels = pixels.clamp(0, 1)  # the reference clamps; here that is left to the frames' stage
    assert relative_error(pixels, tensors["decode_pixels"][0]) <= TOLERANCE


def test_frame_splits_keep_their_last_outputs(recipe, small) -> None:
    """A checkpoint whose splits have twice the outputs gives the same weights."""
    public = recipe.synthetic_state_dict(taehv.public_shapes(SMALL), 3)
    for name in ("decoder.13.conv.weight", "decoder.19.conv.weight"):
        public[name] = torch.cat([torch.randn_like(public[name]), public[name]])
    assert all(torch.equal(w, small[n]) for n, w in taehv.from_public(SMALL, public).items())


def test_odd_first_call_repeats_the_very_first_frame(small, relative_error) -> None:
    """Five frames first are the eight whose first four are the same frame."""
    pixels = torch.rand(9, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    latents, _ = encode(SMALL, small, pixels, [5, 4])
    repeated = torch.cat([pixels[:1].expand(3, -1, -1, -1), pixels])
    expected, _ = encode(SMALL, small, repeated, [12])
    assert latents.shape == (3, 16, HEIGHT // 8, WIDTH // 8)
    assert relative_error(latents, expected) <= TOLERANCE


def test_streaming_is_the_whole_clip(small, relative_error) -> None:
    """One latent a call, as a live stream decodes; the states agree with the whole clip's too."""
    latents = torch.randn(
        5, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0)
    )
    whole, whole_states = decode(SMALL, small, latents, [5])
    streamed, states = decode(SMALL, small, latents, [2, 1, 1, 1])
    assert whole.shape == (17, 3, HEIGHT, WIDTH)
    assert relative_error(streamed, whole) <= TOLERANCE
    assert states.keys() == whole_states.keys() and len(states) == 9
    assert all(relative_error(states[name], whole_states[name]) <= TOLERANCE for name in states)


def test_fused_layers_are_the_same_layers(small, relative_error) -> None:
    """Reference: the layers one by one, to the states; the first call repeats its first frame."""
    pixels = torch.rand(9, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    pairs = []
    for how in ({}, ALL_FUSED):
        latents, states = encode(SMALL, small, pixels, [5, 4], how)
        frames, decoder_states = decode(SMALL, small, latents, [1, 2], how)
        pairs.append({"latents": latents, "frames": frames, **states, **decoder_states})
    plain, fused = pairs
    assert plain.keys() == fused.keys()
    assert all(relative_error(fused[name], plain[name]) <= TOLERANCE for name in plain)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(TaehvError, match="got height 60"):
        TaehvDecoder(SMALL, 60, WIDTH, 1, first=False)
    with pytest.raises(TaehvError, match="got 5 frames"):
        TaehvEncoder(SMALL, HEIGHT, WIDTH, 5, first=False)
    with pytest.raises(TaehvError, match="got 0 a call"):
        TaehvDecoder(SMALL, HEIGHT, WIDTH, 0, first=False)


@pytest.mark.parametrize("how", [{}, ALL_FUSED])
def test_weights_come_in_the_modules_strides(small, how) -> None:
    """An engine's weights are bound by address: strides are part of the contract."""
    encoder = TaehvEncoder(SMALL, HEIGHT, WIDTH, 4, False, how)
    decoder = TaehvDecoder(SMALL, HEIGHT, WIDTH, 1, False, how)
    parameters = dict([*encoder.named_parameters(), *decoder.named_parameters()])
    assert parameters.keys() == small.keys()
    assert all(parameters[name].stride() == small[name].stride() for name in small)


@pytest.mark.parametrize("how", [{}, ALL_FUSED])
def test_tensors_are_channels_last(small, how) -> None:
    """Weights, states and outputs, so that no convolution has to re-arrange its input."""
    encoder = load(TaehvEncoder(SMALL, HEIGHT, WIDTH, 4, False, how), small)
    decoder = load(TaehvDecoder(SMALL, HEIGHT, WIDTH, 1, False, how), small)
    inputs = {
        encoder: torch.rand(4, HEIGHT, WIDTH, 3).permute(0, 3, 1, 2),
        decoder: torch.randn(1, 16, HEIGHT // 8, WIDTH // 8),
    }
    for module, x in inputs.items():
        states = module.states("cpu")
        tensors = [p for p in module.parameters() if p.ndim == 4]
        tensors += [*states.values(), module(x, states=states)]
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


@pytest.mark.parametrize("how", [{}, ALL_FUSED])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("coder", ["encoder", "decoder"])
def test_exported_stage_is_the_eager_one(small, relative_error, coder, first, how) -> None:
    """Outputs and states over three calls; the reference is the eager module."""
    generator = torch.Generator().manual_seed(0)
    if coder == "encoder":
        module = TaehvEncoder(SMALL, HEIGHT, WIDTH, 5 if first else 4, first, how)
        chunks = torch.rand(3, 5 if first else 4, 3, HEIGHT, WIDTH, generator=generator)
    else:
        module = TaehvDecoder(SMALL, HEIGHT, WIDTH, 1, first, how)
        chunks = torch.randn(3, 1, 16, HEIGHT // 8, WIDTH // 8, generator=generator)
    load(module, small)
    states, exported_states = module.states("cpu"), module.states("cpu")
    kwargs = {"states": module.states("cpu")}
    exported = torch.export.export(module, (chunks[0],), kwargs, strict=False).module()
    for chunk in chunks:
        out = exported(chunk, states=exported_states)
        assert relative_error(out, module(chunk, states=states)) <= TOLERANCE
    assert all(relative_error(exported_states[n], states[n]) <= TOLERANCE for n in states)
