"""FP8: the choice of linears, the arithmetic, the graph, the calibration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.errors import BackendError
from sdrt.export.plan.builder import PlanBuilder
from sdrt.export.plan.eager import EagerProgram
from sdrt.export.quantise.calibrate import calibrate
from sdrt.export.quantise.fp8 import (
    GROUPS,
    Linears,
    check_fp8,
    choose_groups,
    input_scale,
    is_quantised,
    quantise_weight,
    through_fp8,
)
from sdrt.export.quantise.material import CalibrationError, Material
from sdrt.export.recipe import Recipe
from sdrt.export.request import Request, build_key
from sdrt.runtime.directory.contents import TextSpec
from sdrt.runtime.video.writer import FrameWriter


def test_groups():
    assert choose_groups(None) == ()
    assert choose_groups("all") == tuple(GROUPS)
    assert choose_groups("ffn_down,qkv") == ("qkv", "ffn_down")
    with pytest.raises(BackendError, match="--fp8 ffn: no such group as 'ffn'; use all, or of qkv"):
        choose_groups("ffn")
    assert is_quantised("block.12.ffn.2.weight", ["ffn_down"])
    for other in (
        "block.1.ffn.2.bias",
        "block.1.ffn.0.weight",
        "cross.1.ffn.2.weight",
        "in.weight",
    ):
        assert not is_quantised(other, ["ffn_down"])


def test_where_there_is_no_fp8():
    with pytest.raises(BackendError, match="sm_80 has no FP8; it takes one of sm_89"):
        check_fp8("bf16", ("sm_80", "sm_89"))
    with pytest.raises(BackendError, match="precision is fp32; use --set precision=bf16"):
        check_fp8("fp32", ("sm_89",))
    check_fp8("fp16", ("sm_89", "sm_90"))


def test_it_belongs_to_the_key(tmp_path: Path):
    """Another choice of groups takes nothing over from an interrupted build."""
    preset = load("tiny", ["precision=bf16"])
    source = open_source("bundled", preset)
    recipe = Recipe.of(preset, fp8=("qkv",))
    request = Request(recipe, source, tmp_path, torch.device("cpu"))
    other = replace(request, recipe=recipe.model_copy(update={"fp8": ("qkv", "ffn_up")}))
    assert build_key(request) != build_key(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arithmetic(dtype):
    """Reference: e4m3 has 3 bits of mantissa, so rounding is off by 1/16 at most."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, generator=generator).mul(0.1).to(dtype)
    weight[3] = 0
    packed, scale = quantise_weight(weight)
    assert packed.dtype == torch.float8_e4m3fn and scale.shape == (64,) and scale.dtype == dtype
    real = packed.float() * scale.float().unsqueeze(1)
    large = weight.float().abs() > weight.float().abs().amax(1, keepdim=True) / 64
    off = (real - weight.float()).abs()
    assert bool((off[large] <= weight.float().abs()[large] / 16 * 1.01).all())
    assert bool((real[3] == 0).all())
    x = torch.tensor([0.0, 1.0, -3.0, 3.5, 100.0], dtype=dtype)
    quantised = through_fp8(x, input_scale(3.5, dtype))
    assert quantised.dtype == dtype and quantised[0] == 0
    assert torch.allclose(quantised[1:4].float(), x[1:4].float(), rtol=1 / 16)
    assert quantised[4] == quantised[3]  # it saturates


class Mlp(PackageModule):
    """Two linears under the names that a block's have."""

    def __init__(self) -> None:
        super().__init__()
        ffn = nn.Sequential(nn.Linear(32, 64), nn.GELU("tanh"), nn.Linear(64, 32))
        self.block = nn.ModuleDict({"0": nn.ModuleDict({"ffn": ffn})})

    def forward(self, x: Tensor) -> Tensor:
        block: nn.Module = self.block["0"]
        return block.get_submodule("ffn")(x)


@pytest.fixture
def mlp():
    """The planned package of an MLP, its weights and what calibration would say of it."""
    builder = PlanBuilder(torch.float32, channels_last_3d=False)
    builder.buffer("x", (1, 8, 32), torch.float32)
    builder.package("mlp", Mlp, "tensorrt-rtx", bakes=True)
    builder.call("mlp", ["x"], ["y"])
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(spec.shape, generator=generator).mul(0.2)
        for name, spec in builder.plan.baked.items()
    }
    largest = {"block.0.ffn.0.weight": 3.0, "block.0.ffn.2.weight": 4.0}
    return builder.plan.packages["mlp"], weights, largest


def test_the_graph_computes_what_the_loss_is_measured_on(mlp, relative_error):
    """Reference: the eager module whose linears are quantised, as calibration measures it."""
    pytest.importorskip("onnxruntime", reason="the extra `tensorrt-rtx` is not installed")
    from sdrt.export.tensorrt.fp8_nodes import insert_fp8
    from sdrt.export.tensorrt.onnx import ExportError, export_stage
    from sdrt.export.tensorrt.onnxruntime import OrtProgram

    planned, weights, largest = mlp
    stage = export_stage(planned, weights)
    plain = stage.graph_sha256()
    insert_fp8(stage, largest)
    assert stage.fp8_linears == 2 and stage.graph_sha256() != plain
    assert set(largest) <= set(stage.model.graph.initializers)
    rescaled = export_stage(planned, weights)
    insert_fp8(rescaled, {name: 2 * value for name, value in largest.items()})
    assert rescaled.graph_sha256() != stage.graph_sha256()  # scales belong to the graph

    def quantise(name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        packed, scale = quantise_weight(weight)
        real = packed.float() * scale.unsqueeze(1)
        return through_fp8(x, input_scale(largest[name], x.dtype)), real

    x = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(1))
    made, expected, exact = ([x, torch.zeros(1, 8, 32)] for _ in range(3))
    OrtProgram(stage).run(made)
    eager = EagerProgram(planned, weights)
    eager.run(exact)
    with Linears(eager.stage, {name: name for name in largest}, quantise):
        eager.run(expected)
    loss = relative_error(expected[1], exact[1])
    assert 0.005 < loss < 0.1
    # The same up to what falls on the other side of a rounding to 3 bits.
    assert relative_error(made[1], expected[1]) < loss / 10
    with pytest.raises(ExportError, match="no linear of its own has the weight block.9"):
        insert_fp8(export_stage(planned, weights), {"block.9.ffn.0.weight": 1.0})


def run_calibration(groups, material, tmp_path: Path, on_progress=lambda *_: None):
    preset = load("tiny", ["dit.num_layers=2"])
    source = open_source("synthetic", preset)
    recipe = Recipe.of(preset, ranges=((0, 1), (1, 2)), fp8=groups)
    text = TextSpec(kind="hashed-words")
    device = torch.device("cpu")
    return calibrate(recipe, source, device, text, tmp_path, material, on_progress)


def test_calibration(tmp_path: Path):
    """One largest input a linear; more linears lose more; the same stream gives the same."""
    seen: list[float] = []
    material = Material(steps=2)
    up = run_calibration(("ffn_up",), material, tmp_path, lambda done, _: seen.append(done))
    assert seen == [0, 0.25, 0.5, 0.75]
    assert set(up.largest) == {"block.0.ffn.0.weight", "block.1.ffn.0.weight"}
    # Inputs of the FFN are normed and modulated: a few standard deviations.
    assert all(2 < value < 20 for value in up.largest.values())
    ranges = {name.removeprefix("dit_range.") for name in up.range_errors}
    assert ranges == {"first.0-1", "first.1-2", "chunk.0-1", "chunk.1-2"}
    everything = run_calibration(tuple(GROUPS), material, tmp_path)
    assert len(everything.largest) == 2 * len(GROUPS)
    assert 0 < up.latent_error < everything.latent_error < 0.2
    assert all(0 < error < 0.2 for error in everything.range_errors.values())
    assert run_calibration(("ffn_up",), material, tmp_path) == up


def test_a_calibration_clip_is_used_and_must_be_long_enough(tmp_path: Path):
    clip = tmp_path / "clip.mp4"
    levels = np.arange(13, dtype=np.uint8)[:, None, None, None] * 20
    with FrameWriter(clip, 224, 128, 16) as writer:
        writer.write(np.broadcast_to(levels, (13, 128, 224, 3)))
    with pytest.raises(CalibrationError, match=r"clip.mp4: 13 frames; 9 AR steps take 40"):
        run_calibration(("qkv",), Material(clip, 9), tmp_path)
    with pytest.raises(CalibrationError, match="--calibration-clip .*absent.mp4"):
        run_calibration(("qkv",), Material(tmp_path / "absent.mp4", 2), tmp_path)
    shown = run_calibration(("qkv",), Material(clip, 2), tmp_path)
    assert shown.largest != run_calibration(("qkv",), Material(steps=2), tmp_path).largest
