"""Operation counts: against arithmetic by hand and torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdrt.bench.baseline.taehv import Taehv
from sdrt.bench.baseline.wan_vae import WanVae
from sdrt.bench.measure.roof import _forms, measure_roof
from sdrt.bench.measure.work import Attention, Conv, Gemm, stage_work
from sdrt.engine.preset.preset import load


def _flops(work) -> float:
    return sum(op.flops * count for op, count in work.items())


def test_dit_of_streamdiffusion_by_hand() -> None:
    """2 rows of 1,560 tokens, 9,360 keys, 30 layers of width 1,536."""
    work = stage_work(load("sdv2-1.3b-480p"))["diffuse"]
    tokens, dim, ffn = 3120, 1536, 8960
    products = 2 * tokens * (6 * dim * dim + 2 * dim * ffn)
    attention = 4 * dim * (tokens * 9360 + tokens * 512)
    patch = 2 * 2 * tokens * dim * 64
    time = 2 * 2 * 6 * dim * dim
    assert _flops(work) == 30 * (products + attention) + patch + time


def test_rollout_runs_every_step_and_a_clean_pass() -> None:
    work = stage_work(load("self-forcing-1.3b-480p"))
    assert set(work) == {"diffuse", "finalize", "decode"}
    assert _flops(work["diffuse"]) == 4 * _flops(work["finalize"])


def test_convolutions_are_those_of_torchs_counter() -> None:
    preset = load("tiny")
    latents = torch.randn(1, 16, 16, 28)
    model = Taehv(preset.taehv)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.decode(latents, {})
    # The plain model splits frames after enlarging them: 3/4 of those 1x1 products are a detour.
    detour = sum(
        2 * 16 * 28 * 4**level * frames * width * (split * width) * 3
        for level, frames, width, split in ((0, 1, 96, 1), (1, 1, 64, 2), (2, 2, 32, 2))
    )
    assert _flops(stage_work(preset)["decode"]) == counter.get_total_flops() - detour


def test_wan_decoder_is_recorded_in_its_steady_phase() -> None:
    preset = load("sdv2-1.3b-480p", ["stream.height=32", "stream.width=32", "wan_vae.dim=8"])
    model, caches = WanVae(preset.wan_vae), {}
    latent = torch.randn(1, 16, 1, 4, 4)
    with torch.no_grad():
        model.decode_latent(latent, caches)
        with FlopCounterMode(display=False) as counter:
            model.decode_latent(latent, caches)
    work = stage_work(preset)["decode"]
    convolutions = {op: count for op, count in work.items() if isinstance(op, Conv)}
    (attention,) = work.keys() - convolutions.keys()
    assert attention == Attention(1, 1, 16, 16, 32)  # which the counter leaves out on a CPU
    assert _flops(convolutions) == counter.get_total_flops()


def test_forms_of_a_convolution_do_the_same_work() -> None:
    op = Conv((1, 8, 6, 10, 12), (16, 8, 3, 3, 3), (1, 1, 1))
    (stacked, _), (same, _) = _forms(op)
    assert same == op
    assert stacked.x == (4, 24, 10, 12) and stacked.weight == (16, 24, 3, 3)
    assert stacked.flops == op.flops == 2 * (4 * 8 * 10 * 16) * 8 * 27


def test_flops_of_single_operations() -> None:
    assert Gemm(2, 3, 5).flops == 60
    assert Attention(2, 3, 5, 7, 11).flops == 4 * 2 * 3 * 5 * 7 * 11


def test_floors_on_this_machine() -> None:
    preset = load("tiny", ["stream.height=32", "stream.width=32", "dit.num_layers=1"])
    roof = measure_roof(preset, torch.device("cpu"))
    assert roof["copy_gb_s"] > 0 and roof["gemm_tflops"]["fp32"] > 0
    for stage in ("encode", "diffuse", "decode"):
        found = roof["stages"][stage]
        summed = sum(row["ms"] * row["count"] for row in found["operations"])
        assert found["floor_ms"] == pytest.approx(max(summed, found["memory_ms"]))
