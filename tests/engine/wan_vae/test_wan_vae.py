"""The streaming Wan VAE against the public reference, itself in other chunks, and its export."""

from itertools import accumulate, pairwise

import pytest
import torch
from torch.nn import functional

from sdrt.engine.convs import (
    FORMS,
    FUSED,
    CausalConv,
    CausalConvError,
    conv_form,
    pack_weight,
    zero_histories,
)
from sdrt.engine.how import NOTHING
from sdrt.engine.latents import denormalise, normalise
from sdrt.engine.preset.preset import WanVaeConfig
from sdrt.engine.wan_vae.blocks import enlarge, interleave
from sdrt.engine.wan_vae.chain import fusable
from sdrt.engine.wan_vae.coder import MEAN, STD
from sdrt.engine.wan_vae.layers import decoder_chain, encoder_chain
from sdrt.engine.wan_vae.model import WanVaeDecoder, WanVaeEncoder, WanVaeError
from sdrt.engine.wan_vae.weights import from_public, public_shapes

TOLERANCE = 1e-4  # float32, another implementation: the golden cases' own
SAME_MATH = 1e-5  # float32, the same sums in another order
SMALL = WanVaeConfig(dim=8)
HEIGHT, WIDTH = 16, 24
PHASES = pytest.mark.parametrize("first", [True, False], ids=["first", "steady"])
CODERS = pytest.mark.parametrize("coder", [WanVaeEncoder, WanVaeDecoder])


def build(
    coder, config, tensors, size, count, first, how=NOTHING, dtype=torch.float32, largest_call=None
):
    """Return a coder with the public ``tensors`` loaded."""
    module = coder(config, *size, count, first, how, largest_call).to(dtype)
    loaded = from_public(config, tensors, how)
    module.load_state_dict({name: loaded[name] for name in module.state_dict()})
    return module.eval().requires_grad_(False)


def run(coder, config, tensors, x, chunks, how=NOTHING, largest_call=None):
    """Stream ``x`` ``[T, C, H, W]`` in ``chunks``; a module per chunk shares states and weights."""
    scale = 1 if coder is WanVaeEncoder else 8
    size = (x.shape[2] * scale, x.shape[3] * scale)
    states, outputs = None, []
    for start, end in pairwise(accumulate(chunks, initial=0)):
        arguments = (coder, config, tensors, size, end - start, start == 0, how)
        module = build(*arguments, largest_call=largest_call)
        states = states or module.states("cpu")
        outputs.append(module(x[start:end], states=states))
    assert sum(chunks) == len(x)
    return torch.cat(outputs)


def all_forms(form: str) -> dict[str, str]:
    """Return a ``how`` that puts every layer with a choice into one form."""
    shapes = public_shapes(SMALL)
    layers = [name.removesuffix(".weight") for name, s in shapes.items() if s[2:] == (3, 3, 3)]
    return {f"wan_vae.{layer}": form for layer in layers}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).contiguous(memory_format=torch.channels_last)


def example(coder, first, chunks=1):
    """Return the input of one call with ``chunks`` latents after the first."""
    if coder is WanVaeEncoder:
        return draw(4 * chunks + first, 3, HEIGHT, WIDTH)
    return draw(chunks + first, 16, HEIGHT // 8, WIDTH // 8)


@pytest.fixture(scope="module")
def small(recipe):
    """Public weights of the small VAE."""
    return recipe.synthetic_state_dict(public_shapes(SMALL), seed=7)


@pytest.fixture(scope="module")
def case(golden, recipe):
    """The golden case: tensors ``[T, C, H, W]``, its description, configuration and weights."""
    tensors, about = golden("wan_vae_stream")
    frames = {
        name: x[0].transpose(0, 1).contiguous(memory_format=torch.channels_last)
        for name, x in tensors.items()
    }
    shapes = {name: tuple(shape) for name, shape in about["parameters"].items()}
    weights = recipe.synthetic_state_dict(shapes, about["seed"])
    return frames, about, WanVaeConfig(**about["model"]), weights


def test_public_names_and_shapes(case):
    _, about, config, _ = case
    shapes = {name: list(shape) for name, shape in public_shapes(config).items()}
    assert shapes == about["parameters"]


@pytest.mark.parametrize("form", FORMS)
def test_weights_come_in_the_modules_shapes_and_strides(small, form):
    how = all_forms(form)
    loaded = from_public(SMALL, small, how)
    encoder = WanVaeEncoder(SMALL, HEIGHT, WIDTH, 4, False, how)
    decoder = WanVaeDecoder(SMALL, HEIGHT, WIDTH, 1, False, how)
    own = {**encoder.state_dict(), **decoder.state_dict()}
    assert own.keys() == loaded.keys()
    for name, weight in own.items():
        assert (loaded[name].shape, loaded[name].stride()) == (weight.shape, weight.stride()), name
        assert weight.ndim < 4 or weight.stride(1) == 1, f"{name} is not channels_last"


def test_encoder_golden(case, relative_error):
    frames, about, config, weights = case
    latents = run(WanVaeEncoder, config, weights, frames["pixels"], about["encode_chunks"])
    assert latents.dtype == torch.float32
    assert relative_error(latents, frames["latents"]) <= TOLERANCE


def test_decoder_golden(case, relative_error):
    frames, about, config, weights = case
    latents = denormalise(frames["decode_latents"], MEAN, STD)
    pixels = run(WanVaeDecoder, config, weights, latents, about["decode_chunks"])
    assert relative_error(pixels, frames["decode_pixels"]) <= TOLERANCE


@pytest.mark.parametrize("chunks", [(1, 4, 8), (5, 4, 4), (9, 4)])
def test_encoder_stream_equals_whole_clip(small, relative_error, chunks):
    pixels = draw(13, 3, HEIGHT, WIDTH)
    whole = run(WanVaeEncoder, SMALL, small, pixels, (13,))
    streamed = run(WanVaeEncoder, SMALL, small, pixels, chunks)
    assert whole.shape == (4, 16, HEIGHT // 8, WIDTH // 8)
    assert relative_error(streamed, whole) <= SAME_MATH


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (1, 3), (2, 1, 1), (3, 1)])
def test_decoder_stream_equals_whole_clip(small, relative_error, chunks):
    latents = draw(4, 16, HEIGHT // 8, WIDTH // 8)
    whole = run(WanVaeDecoder, SMALL, small, latents, (4,))
    streamed = run(WanVaeDecoder, SMALL, small, latents, chunks)
    assert whole.shape == (13, 3, HEIGHT, WIDTH)
    assert relative_error(streamed, whole) <= SAME_MATH


def wide_weights() -> dict[str, torch.Tensor]:
    """Return noise for the weights of the public sizes, whose widths the fused kernel has."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (0.03 if name.endswith("weight") else 0.2)
        + name.endswith("gamma")
        for name, shape in public_shapes(WanVaeConfig()).items()
    }


@CODERS
def test_fused_layers_agree(relative_error, coder):
    """Reference: the default forms, over a first and two later calls; all layers that can fuse."""
    config, tensors = WanVaeConfig(), wide_weights()
    how = {
        f"wan_vae.{side}.{index}": FUSED
        for side, chain in (
            ("encoder.downsamples", encoder_chain(config)),
            ("decoder.upsamples", decoder_chain(config)),
        )
        for index, layer in enumerate(chain)
        if fusable(layer, upsamples=side.startswith("decoder"))
    }
    assert len(how) == 4 + 9
    how["wan_vae.decoder.head.2"] = FUSED
    x = draw(13, 3, 16, 24) if coder is WanVaeEncoder else draw(4, 16, 2, 3)
    chunks = (5, 4, 4) if coder is WanVaeEncoder else (2, 1, 1)
    plain = run(coder, config, tensors, x, chunks)
    fused = run(coder, config, tensors, x, chunks, how, largest_call=5)
    assert relative_error(fused, plain) <= SAME_MATH


def test_upsampling_alone_is_fused(relative_error):
    """Reference: the default forms. Nothing is normed in the same pass, and no ring is there."""
    config, tensors = WanVaeConfig(), wide_weights()
    kinds = [layer.kind for layer in decoder_chain(config)]
    upsamples = [index for index, kind in enumerate(kinds) if kind != "residual"]
    how = {f"wan_vae.decoder.upsamples.{index}": FUSED for index in upsamples}
    assert len(how) == 3
    x, chunks = draw(3, 16, 2, 3), (2, 1)
    plain = run(WanVaeDecoder, config, tensors, x, chunks)
    fused = run(WanVaeDecoder, config, tensors, x, chunks, how)
    assert relative_error(fused, plain) <= SAME_MATH


@CODERS
def test_forms_agree(small, relative_error, coder):
    x = example(coder, first=True, chunks=2)
    chunks = (5, 4) if coder is WanVaeEncoder else (2, 1)
    stacked, conv3d = (run(coder, SMALL, small, x, chunks, all_forms(form)) for form in FORMS)
    assert relative_error(stacked, conv3d) <= SAME_MATH


def test_default_form_follows_the_measurements():
    assert [conv_form(channels) for channels in (3, 96, 192, 384)] == [
        "stacked",
        "stacked",
        "conv3d",
        "stacked",
    ]


@pytest.mark.parametrize("temporal", [(True, True, False), (True, False, True)])
def test_other_places_of_the_temporal_levels(recipe, relative_error, temporal):
    config = WanVaeConfig(dim=8, temporal_downsample=temporal)
    weights = recipe.synthetic_state_dict(public_shapes(config), seed=1)
    for coder, chunks in ((WanVaeEncoder, (5, 4)), (WanVaeDecoder, (2, 1))):
        x = example(coder, first=True, chunks=2)
        whole = run(coder, config, weights, x, (len(x),))
        assert relative_error(run(coder, config, weights, x, chunks), whole) <= SAME_MATH


@CODERS
def test_phases_share_states(coder):
    counts = {True: 5, False: 4} if coder is WanVaeEncoder else {True: 2, False: 1}
    first, steady = (
        coder(SMALL, HEIGHT, WIDTH, counts[phase], phase).states("cpu") for phase in (True, False)
    )
    assert first.keys() == steady.keys()
    for name, state in first.items():
        other = steady[name]
        assert (state.shape, state.stride()) == (other.shape, other.stride()), name
        assert state.is_contiguous(memory_format=torch.channels_last), name
        assert not state.any(), name


@CODERS
@PHASES
def test_bf16(small, relative_error, coder, first):
    x = example(coder, first)
    size = (HEIGHT, WIDTH)
    full = build(coder, SMALL, small, size, len(x), first)
    half = build(coder, SMALL, small, size, len(x), first, dtype=torch.bfloat16)
    states = half.states("cpu")
    assert {state.dtype for state in states.values()} == {torch.bfloat16}
    encodes = coder is WanVaeEncoder
    out = half(x.bfloat16() if encodes else x, states=states)
    assert out.dtype == (torch.float32 if encodes else torch.bfloat16)
    assert out.is_contiguous(memory_format=torch.channels_last)
    # About 30 layers, each rounding by 2**-9 (independently: times sqrt(30)) a few times over.
    assert relative_error(out, full(x, states=full.states("cpu"))) <= 0.04


@CODERS
@PHASES
def test_export(small, relative_error, coder, first):
    x = example(coder, first)
    module = build(coder, SMALL, small, (HEIGHT, WIDTH), len(x), first)
    program = torch.export.export(module, (x,), {"states": module.states("cpu")}, strict=False)
    assert not program.constants
    eager, exported = module.states("cpu"), module.states("cpu")
    for state, other in zip(eager.values(), exported.values(), strict=True):
        state.normal_(generator=torch.Generator().manual_seed(state.shape[1]))
        other.copy_(state)
    out = program.module()(x, states=exported)
    assert relative_error(out, module(x, states=eager)) <= SAME_MATH
    for name, state in eager.items():
        assert relative_error(exported[name], state) <= SAME_MATH, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunks", [(6,), (1, 1, 4), (3, 2, 1)])
def test_causal_conv_is_conv3d_over_all_frames(relative_error, form, chunks):
    x = draw(6, 5, 8, 6)
    weight, bias = draw(7, 5 * 3, 3, 3, seed=1).reshape(7, 5, 3, 3, 3), draw(1, 7, 1, 1).flatten()
    conv = CausalConv("c", 5, 7, (8, 6), form=form).requires_grad_(False)
    conv.load_state_dict({"weight": pack_weight(weight, form), "bias": bias})
    states = zero_histories(conv, "cpu")
    out = torch.cat([conv(part, states) for part in x.split(list(chunks))])
    video = functional.pad(x.transpose(0, 1)[None], (1, 1, 1, 1, 2, 0))
    expected = functional.conv3d(video, weight, bias)[0].transpose(0, 1)
    assert relative_error(out, expected) <= SAME_MATH
    assert torch.equal(states["c"], x[-2:])


def test_enlarge_is_nearest_exact():
    x = draw(2, 3, 5, 7)
    expected = functional.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    assert torch.equal(enlarge(x), expected)
    assert enlarge(x).is_contiguous(memory_format=torch.channels_last)


def test_interleave_puts_halves_one_after_the_other():
    x = draw(2, 6, 4, 5)
    expected = [x[0, :3], x[0, 3:], x[1, :3], x[1, 3:]]
    assert torch.equal(interleave(x), torch.stack(expected))
    assert interleave(x).is_contiguous(memory_format=torch.channels_last)


def test_normalisation(relative_error):
    latents = draw(2, 16, 4, 5)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    assert relative_error(normalise(latents, MEAN, STD), (latents - mean) / std) <= SAME_MATH
    back = denormalise(normalise(latents, MEAN, STD), MEAN, STD)
    assert relative_error(back, latents) <= SAME_MATH


def test_normalisation_exports_without_constants():
    class Stage(torch.nn.Module):
        def forward(self, latents):
            return denormalise(latents, MEAN, STD)

    assert not torch.export.export(Stage(), (draw(1, 16, 2, 3),)).constants


@pytest.mark.parametrize(
    ("coder", "arguments", "message"),
    [
        (WanVaeEncoder, (20, 24, 4, False), "multiples of 8: got height 20"),
        (WanVaeEncoder, (16, 24, 4, True), "4k [+] 1 .* got 4 frames"),
        (WanVaeEncoder, (16, 24, 5, False), "a multiple of 4: got 5 frames"),
        (WanVaeEncoder, (16, 24, 0, False), "got 0 frames"),
        (WanVaeDecoder, (16, 20, 1, False), "multiples of 8: .* width 20"),
        (WanVaeDecoder, (16, 24, 0, True), "at least 1 latent: got 0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(coder, arguments, message):
    with pytest.raises(WanVaeError, match=message):
        coder(SMALL, *arguments)


def test_unknown_form_is_refused(small):
    how = {"wan_vae.decoder.conv1": "conv4d"}
    with pytest.raises(CausalConvError, match="decoder.conv1: unknown form 'conv4d'"):
        WanVaeDecoder(SMALL, HEIGHT, WIDTH, 1, False, how)
    with pytest.raises(CausalConvError, match="expected one of stacked, conv3d"):
        from_public(SMALL, small, how)
