"""Tuning: what is timed before a build, and what the fastest do to the plan."""

import pytest
import torch

from sdrt.engine.coder import CODERS
from sdrt.engine.preset.preset import load
from sdrt.engine.taehv.model import FIRST, FUSED, LAST, TaehvDecoder, TaehvEncoder
from sdrt.engine.wan_vae.coder import largest_call
from sdrt.export.recipe import Recipe
from sdrt.export.tune import measure as module
from sdrt.export.tune.measure import (
    CODER_TUNABLES,
    TuneError,
    fastest,
    op_modules,
    tunables,
    tune,
)
from sdrt.runtime.directory.contents import Choice

CPU = torch.device("cpu")
SMALL = ["encoder=wan-vae", "decoder=wan-vae", "stream.height=64", "stream.width=64"]


def counting(candidates) -> Choice:
    """Stand in for the measurement: the first candidate."""
    return Choice(chosen=next(iter(candidates)), ms={})


def test_a_lone_candidate_is_not_timed() -> None:
    def never() -> None:
        raise AssertionError("timed")

    assert fastest({"sdpa": never}) == Choice(chosen="sdpa", ms={})


def test_candidates_that_do_not_fit_are_left_out(monkeypatch) -> None:
    """Without any left, the error names them."""

    def capture(calls, warm_up) -> None:
        raise torch.OutOfMemoryError("2 GiB")

    monkeypatch.setattr(module, "capture", capture)
    with pytest.raises(TuneError, match="too small for any of stacked, conv3d"):
        fastest({"stacked": lambda: None, "conv3d": lambda: None})


def test_every_layer_with_a_choice_is_tuned() -> None:
    """The tiny preset has all of them, small enough to make the candidates on a CPU."""
    preset = load("tiny", SMALL)
    found = {tunable.place: tunable for tunable in tunables(preset, CPU)}
    layers = {place for place, tunable in found.items() if tunable.stage != "dit"}
    plan = Recipe.of(preset).plan()
    blocks = {
        "wan_vae." + name.removeprefix("wan-vae.model.").partition(".residual.")[0]
        for name in plan.weights
        if ".residual." in name
    }
    assert {name for name in layers if "middle.1" not in name} >= blocks
    assert {"wan_vae.encoder.middle.1", "wan_vae.decoder.middle.1"} <= layers
    assert found.keys() - layers == {
        "dit.attention.ring.first",
        "dit.attention.text.first",
        "dit.attention.ring.filling",
        "dit.attention.ring.steady",
        "dit.attention.text.chunk",
    }
    with torch.inference_mode():
        for tunable in {tunable.kind: tunable for tunable in found.values()}.values():
            for run in tunable.candidates().values():
                run()


def test_layers_of_taehv_are_tuned() -> None:
    """Those that a preset has; on a CPU there is one candidate."""
    found = {tunable.place: tunable for tunable in tunables(load("tiny"), CPU)}
    assert {place for place, tunable in found.items() if tunable.stage != "dit"} == {FIRST, LAST}
    with torch.inference_mode():
        for place in (FIRST, LAST):
            candidates = found[place].candidates()
            assert list(candidates) == ["conv2d"]
            candidates["conv2d"]()
    places = {place for place, *_ in tunables(load("tiny", ["encoder=wan-vae"]), CPU)}
    assert LAST in places and FIRST not in places


def test_every_autoencoder_can_be_tuned() -> None:
    """Also one without anything to tune has to say so."""
    assert CODER_TUNABLES.keys() == CODERS.keys()


def test_chosen_layers_of_taehv_are_fused() -> None:
    """In both phases, and nowhere without a choice; buffers and weights are the same."""
    plans = [
        Recipe.of(load("tiny"), how=chosen or {}).plan()
        for chosen in (None, {FIRST: "conv2d", LAST: "conv2d"}, {FIRST: FUSED, LAST: FUSED})
    ]
    for plan, fused in zip(plans, (False, False, True), strict=True):
        assert (plan.buffers, plan.weights) == (plans[0].buffers, plans[0].weights)
        modules = [m for p in plan.packages.values() for m in p.module.stage.modules()]
        coders = [m for m in modules if isinstance(m, (TaehvEncoder, TaehvDecoder))]
        assert [coder.fused for coder in coders] == [fused] * 4


def test_layers_that_are_alike_are_timed_once(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(module, "fastest", lambda made: calls.append(1) or counting(made))
    preset = load("tiny", SMALL)
    found = tune(Recipe.of(preset), CPU)
    assert 0 < len(calls) < len(found)


@pytest.mark.parametrize(
    ("stage", "prefix", "changes"),
    [
        ("dit", "dit.attention.", SMALL),
        ("vae_encoder", "wan_vae.encoder.", SMALL),
        ("vae_decoder", "wan_vae.decoder.", SMALL),
        ("taehv_encoder", "taehv.encoder.", []),
        ("taehv_decoder", "taehv.decoder.", []),
    ],
)
def test_stages_of_tensorrt_have_no_choice(monkeypatch, stage, prefix, changes) -> None:
    monkeypatch.setattr(module, "fastest", counting)
    preset = load("tiny", changes)
    assert any(name.startswith(prefix) for name in tune(Recipe.of(preset), CPU))
    found = tune(Recipe.of(preset, backends={stage: "tensorrt"}), CPU)
    assert found and not any(name.startswith(prefix) for name in found)


def test_packages_that_call_compiled_kernels_name_their_ops() -> None:
    assert op_modules({"a": Choice(chosen="sdpa", ms={})}) == ()
    chosen = {"a": "hopper", "b": "cudnn", "c": "fused"}
    choices = {name: Choice(chosen=value, ms={}) for name, value in chosen.items()}
    assert op_modules(choices) == ("sdrt.kernels.causal_conv", "sdrt.kernels.ring_attention")
    fused = Choice(chosen=FUSED, ms={})
    assert op_modules({FIRST: fused, LAST: fused}) == ()  # Triton's are in the packages


def test_both_phases_share_the_rings_of_fused_layers() -> None:
    """The largest call of the two, and the two frames before it, at the level's frame rate."""
    preset = load("sdv2-1.3b-480p")
    assert largest_call(preset) == max(4 * preset.first_chunk_latent_frames - 3, 4)
    fused = {"wan_vae.encoder.downsamples.0": "fused", "wan_vae.decoder.upsamples.8": "fused"}
    plan = Recipe.of(preset, "cuda", how=fused).plan()
    frames = largest_call(preset)
    ring = plan.buffers["encoder.encoder.downsamples.0.residual.2"]
    assert ring.shape == (frames + 2, 12, 480, 832, 8)
    assert plan.buffers["decoder.decoder.upsamples.8.residual.6"].shape[:2] == (frames + 2, 24)
    assert plan.buffers["encoder.position"].dtype == "int64"


@pytest.mark.gpu
def test_the_fastest_is_chosen() -> None:
    """Reference: a product of matrices four times as wide takes longer."""
    small, large = (torch.randn(size, size, device="cuda") for size in (1024, 4096))
    found = fastest({"large": lambda: large @ large, "small": lambda: small @ small})
    assert found.chosen == "small" and found.ms["small"] < found.ms["large"]
