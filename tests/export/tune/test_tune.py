"""Choices: what is asked before a build, and what the answers do to the plan."""

import pytest
import torch

from sdrt.engine.preset.preset import load
from sdrt.engine.taehv.model import FIRST, LAST, TaehvDecoder, TaehvEncoder
from sdrt.export.plan.pipeline import Pipeline
from sdrt.export.recipe import Recipe
from sdrt.export.tune import measure as module
from sdrt.export.tune.measure import ChoiceError, choose, fastest, op_modules, questions
from sdrt.export.tune.wan_vae import largest_call
from sdrt.runtime.directory.manifest import Choice

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
    with pytest.raises(ChoiceError, match="too small for any of stacked, conv3d"):
        fastest({"stacked": lambda: None, "conv3d": lambda: None})


def test_every_layer_with_a_choice_is_asked_for() -> None:
    """The tiny preset has all of them, small enough to make the candidates on a CPU."""
    preset = load("tiny", SMALL)
    asked = {name: (kind, make) for name, kind, make in questions(preset, CPU)}
    layers = {name for name in asked if not name.startswith("attention.")}
    plan = Pipeline(preset, ((0, 8),), "cpu").plan()
    blocks = {
        name.removeprefix("wan-vae.model.").partition(".residual.")[0]
        for name in plan.weights
        if ".residual." in name
    }
    assert {name for name in layers if "middle.1" not in name} >= blocks
    assert {"encoder.middle.1", "decoder.middle.1"} <= layers
    assert {name.split(".", 1)[1] for name in asked.keys() - layers} == {
        "ring.first",
        "text.first",
        "ring.filling",
        "ring.steady",
        "text.chunk",
    }
    with torch.inference_mode():
        for make in dict(asked.values()).values():  # layers that are alike, once
            for run in make().values():
                run()


def test_layers_of_taehv_are_asked_for() -> None:
    """Those that a preset has; on a CPU there is one candidate."""
    asked = {name: make for name, _, make in questions(load("tiny"), CPU)}
    assert {name for name in asked if not name.startswith("attention.")} == {FIRST, LAST}
    with torch.inference_mode():
        for name in (FIRST, LAST):
            candidates = asked[name]()
            assert list(candidates) == ["conv2d"]
            candidates["conv2d"]()
    names = {name for name, *_ in questions(load("tiny", ["encoder=wan-vae"]), CPU)}
    assert LAST in names and FIRST not in names


def test_chosen_layers_of_taehv_are_fused() -> None:
    """In both phases, and nowhere without a choice; buffers and weights are the same."""
    plans = [
        Pipeline(load("tiny"), ((0, 8),), "cpu", chosen).plan()
        for chosen in (None, {FIRST: "conv2d", LAST: "conv2d"}, {FIRST: "fused", LAST: "fused"})
    ]
    for plan, fused in zip(plans, (False, False, True), strict=True):
        assert (plan.buffers, plan.weights) == (plans[0].buffers, plans[0].weights)
        modules = [m for p in plan.packages.values() for m in p.module.stage.modules()]
        coders = [m for m in modules if isinstance(m, (TaehvEncoder, TaehvDecoder))]
        assert [coder.fused for coder in coders] == [fused] * 4


def test_layers_that_are_alike_are_asked_once(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(module, "fastest", lambda made: calls.append(1) or counting(made))
    preset = load("tiny", SMALL)
    found = choose(Recipe.of(preset), CPU)
    assert 0 < len(calls) < len(found)


@pytest.mark.parametrize(
    ("stage", "prefix", "changes"),
    [
        ("dit", "attention.", SMALL),
        ("vae_encoder", "encoder.", SMALL),
        ("vae_decoder", "decoder.", SMALL),
        ("taehv_encoder", "taehv.encoder.", []),
        ("taehv_decoder", "taehv.decoder.", []),
    ],
)
def test_stages_of_tensorrt_have_no_choice(monkeypatch, stage, prefix, changes) -> None:
    monkeypatch.setattr(module, "fastest", counting)
    preset = load("tiny", changes)
    assert any(name.startswith(prefix) for name in choose(Recipe.of(preset), CPU))
    found = choose(Recipe.of(preset, backends={stage: "tensorrt"}), CPU)
    assert found and not any(name.startswith(prefix) for name in found)


def test_packages_that_call_compiled_kernels_name_their_ops() -> None:
    assert op_modules({"a": Choice(chosen="sdpa", ms={})}) == ()
    chosen = {"a": "hopper", "b": "cudnn", "c": "fused"}
    choices = {name: Choice(chosen=value, ms={}) for name, value in chosen.items()}
    assert op_modules(choices) == ("sdrt.kernels.causal_conv", "sdrt.kernels.ring_attention")
    fused = Choice(chosen="fused", ms={})
    assert op_modules({FIRST: fused, LAST: fused}) == ()  # Triton's are in the packages


def test_both_phases_share_the_rings_of_fused_layers() -> None:
    """The largest call of the two, and the two frames before it, at the level's frame rate."""
    preset = load("sdv2-1.3b-480p")
    assert largest_call(preset) == max(4 * preset.first_chunk_latent_frames - 3, 4)
    fused = {"encoder.downsamples.0": "fused", "decoder.upsamples.8": "fused"}
    plan = Pipeline(preset, ((0, 30),), "cuda", fused).plan()
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
