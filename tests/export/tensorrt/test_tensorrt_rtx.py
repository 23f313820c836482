"""The real tensorrt_rtx, without a GPU: plans of the tiny preset, the builder's log, refusals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import load
from sdrt.export.cli import main
from sdrt.export.plan.builder import PlanBuilder
from sdrt.export.progress import Progress
from sdrt.export.recipe import Recipe
from sdrt.export.tensorrt.settings import Settings
from sdrt.runtime import cli as sdrun
from sdrt.runtime.directory.manifest import MachineError, Manifest, read_manifest
from sdrt.runtime.session import Session

for optional in ("tensorrt_rtx", "onnx", "onnxscript"):
    pytest.importorskip(optional, reason="the extra `tensorrt-rtx` is not installed")

from sdrt.export.tensorrt.builder import Cancelled, PlanError, build_plan, load_library  # noqa: E402
from sdrt.export.tensorrt.child import PlanWorker  # noqa: E402
from sdrt.export.tensorrt.onnx import export_stage  # noqa: E402
from sdrt.export.tensorrt.onnxruntime import TOLERANCE, OrtProgram  # noqa: E402

TARGETS = ("sm_89", "sm_120")
ARCHITECTURE_BITS = {"sm_89": 8, "sm_120": 16}
"""In the mask at byte 32 of a plan (seen in plans of version 1.7.1, not documented)."""
LAYERS = 8


@pytest.fixture(scope="session")
def run(invoke):
    """Callable: the result of build-engines with some arguments."""
    return partial(invoke, main)


@pytest.fixture(scope="module")
def engine(run, tmp_path_factory) -> Path:
    """An engine directory of the preset tiny in bf16, all stages plans, with its ONNX files."""
    folder = tmp_path_factory.mktemp("rtx") / "engine"
    arguments = ["--set", "precision=bf16", "--backend", "tensorrt-rtx", "--out", str(folder)]
    arguments += ["--keep-onnx", "--explain", "--check-onnx"]
    result = run(*arguments, "--target", ",".join(TARGETS))
    assert result.exit_code == 0, result.output
    (folder.parent / "output.txt").write_text(result.output)
    return folder


@pytest.fixture(scope="module")
def manifest(engine: Path) -> Manifest:
    """The directory's manifest."""
    return read_manifest(engine)


def test_every_stage_is_a_plan_for_both_cards(engine: Path, manifest: Manifest):
    """Reference: the header of each plan, and the stages of the preset."""
    names = {stage.name.partition(".")[0] for stage in manifest.stages}
    assert names == {"prompt", "taehv_encoder", f"dit[0:{LAYERS}]", "taehv_decoder"}
    assert manifest.device.targets == TARGETS
    for name, package in manifest.packages.items():
        assert package.backend == "tensorrt-rtx" and package.engine is not None
        plan = (engine / package.file).read_bytes()
        assert plan[:4] == b"vtrt", name
        assert int.from_bytes(plan[32:36], "little") == sum(ARCHITECTURE_BITS.values()), name
        spec = package.engine
        assert spec.library == "tensorrt_rtx" and spec.targets == TARGETS
        assert spec.version == manifest.versions["tensorrt_rtx"]
        assert spec.precision == "bf16" and len(spec.graph_sha256) == len(spec.weights_sha256) == 64


def test_attention_is_fused_and_memory_small(manifest: Manifest):
    """Reference: the builder's own log. Unfused attention would show in both numbers."""
    for phase in ("first", "chunk"):
        spec = manifest.packages[f"dit_range.{phase}.0-{LAYERS}"].engine
        assert spec is not None
        assert spec.fused_attentions == 2 * LAYERS
        assert 0 < spec.activation_bytes < 16e6
        caches = [name for name, _ in spec.addresses if name.startswith("new.ring")]
        assert len(caches) == 2 * LAYERS
    for name, package in manifest.packages.items():
        assert package.engine is not None
        assert 0 < package.engine.activation_bytes < 64e6, name


def test_caches_lie_where_they_were(manifest: Manifest):
    """A K/V cache goes in and out at one address; other states come out in a bank."""
    for package in manifest.packages.values():
        spec = package.engine
        assert spec is not None
        indices = dict(spec.addresses)
        for tensor, index in spec.addresses:
            if tensor.startswith("new."):
                assert indices["state." + tensor.removeprefix("new.")] == index
        outputs = {index for name, index in spec.addresses if name.startswith("out.")}
        inputs = {index for name, index in spec.addresses if not name.startswith(("out.", "new."))}
        assert not outputs & inputs
        assert not {index for _, index in spec.banks} & outputs


def test_onnx_files_are_kept_on_request(engine: Path, manifest: Manifest):
    """Each plan has its graph, with the weights beside it under their names."""
    import onnx

    names = set()
    for name in manifest.packages:
        model = onnx.load(engine / "onnx" / f"{name}.onnx", load_external_data=False)
        assert model.opset_import[0].version == 24
        names |= {tensor.name for tensor in model.graph.initializer}
    parts = ("taehv.model.decoder.", "block.7.ffn.0.weight", "cross.0.kv.weight", "in.", "out.")
    assert all(any(name.startswith(part) for name in names) for part in parts)


def test_explain_prints_layers(engine: Path):
    """Layers, fused attention and activation memory, from the builder's log."""
    output = (engine.parent / "output.txt").read_text()
    assert f"{2 * LAYERS} of them fused attention" in output
    assert "_gemm_mha" in output and "MB of activations" in output


def test_every_stage_was_checked_in_onnxruntime(engine: Path, manifest: Manifest):
    """Reference: the eager modules, in float32, with the weights that the plans have."""
    output = (engine.parent / "output.txt").read_text()
    for name, package in manifest.packages.items():
        assert package.engine is not None and package.engine.onnx_error is not None
        assert 0 < package.engine.onnx_error <= TOLERANCE, name
        assert f"{name}: onnxruntime and the eager module agree to" in output


def test_the_manifest_says_how_to_build_it_again(engine: Path, manifest: Manifest):
    """All that was asked for, the folder apart."""
    (built,) = manifest.builds
    expected = "--preset tiny --set precision=bf16 --backend tensorrt-rtx --keep-onnx --check-onnx"
    assert " ".join(built.arguments) == expected
    assert (built.device, built.target, built.rtx) == (None, "sm_89,sm_120", True)
    target = f"--target sm_89,sm_120 --out {engine} --force"
    assert manifest.rebuild_command(engine).endswith(target)


def test_weights_are_in_the_plans_only(engine: Path):
    """What is left in safetensors are the schedule's tables."""
    files = list((engine / "weights").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) < 1e4


def test_refusal_without_a_gpu(engine: Path, tmp_path: Path, capsys):
    """One clear line from the library and from sdrun."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    expected = f"{engine}: built for sm_89, sm_120 (plans of tensorrt_rtx), but no CUDA device"
    with pytest.raises(MachineError, match="no CUDA device is here") as caught:
        Session.open(engine)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    code = sdrun.main(
        ["--engine", str(engine), "--input", str(clip), "--prompt", "p"]
        + ["--output", str(tmp_path / "out.mp4")]
    )
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target", "sm_90"], "plans of tensorrt_rtx cannot run on it"),
        ([], "no CUDA device is here to build TensorRT plans for: give --target"),
        (["--target", "sm_75", "--set", "precision=bf16"], "it has no bf16"),
        (
            ["--target", "sm_89", "--stage-backend", "dit=inductor"],
            "stage dit is built by ind",
        ),
        (["--stage-backend", "vae=tensorrt"], "this preset has taehv_encoder, dit, taehv_decoder"),
        (["--stage-backend", "dit=tensorrt"], "choose one of them"),
        (["--stage-backend", "dit=onnx"], "no such backend"),
        (["--target", "sm_89", "--fp8", "ffn"], "no such group as 'ffn'; use all, or of qkv, a"),
        (["--target", "sm_89", "--fp8", "all"], "--fp8: the preset's precision is fp32"),
        (
            ["--target", "sm_86,sm_89", "--set", "precision=bf16", "--fp8", "all"],
            "--fp8: sm_86 has no FP8; it takes one of sm_89, sm_90",
        ),
    ],
)
def test_requests_that_cannot_be_built(run, arguments: list[str], message: str, tmp_path: Path):
    """One line that says what can."""
    if torch.cuda.is_available() and not arguments:
        pytest.skip("there is a GPU here")
    result = run("--backend", "tensorrt-rtx", "--out", str(tmp_path / "engine"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "engine").exists()


def test_a_mixed_directory(run, engine: Path, tiny_engine: Path, tmp_path: Path):
    """Plans added to packages: the packages still run here, the plans wait for their card."""
    folder = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    added = ["--backend", "tensorrt-rtx", "--target", "sm_89", "--add", "--out", str(folder)]
    result = run(*added)
    assert result.exit_code == 0, result.output
    packages, plans = read_manifest(folder).variants()
    assert {package.backend for package in plans.packages.values()} == {"tensorrt-rtx"}
    assert plans.device.targets == ("sm_89",)
    for package in plans.packages.values():
        assert (folder / package.file).stat().st_size == package.bytes
    with Session.open(folder) as session:
        assert session.manifest.packages == packages.packages
    first, second = read_manifest(folder).rebuild_command(folder).split(" && ")
    assert first.endswith(f"--out {folder} --force") and "--backend" not in first
    assert second.endswith(f"--backend tensorrt-rtx --target sm_89 --out {folder} --add")
    again = run(*added)
    assert again.exit_code == 2 and "is built for sm_89 already" in again.stderr
    other = run(*added, "--set", "stream.window_frames=7")
    assert other.exit_code == 2 and "other settings" in other.stderr


def test_a_crash_of_the_builder_is_an_error_message(monkeypatch, tmp_path: Path):
    """A process that dies answers nothing; the next plan gets a new one."""
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nread line\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with PlanWorker({}, Progress(Console(quiet=True), 1)) as worker:
        for _ in range(2):
            with pytest.raises(PlanError, match=r"plan dit: .* crashed \(exit status -11\)"):
                worker.build("dit", None, {})
    monkeypatch.setattr(sys, "executable", sys.executable)


class Doubles(PackageModule):
    """Two times its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def exported(tmp_path: Path):
    """Return a small stage and the path of its ONNX file."""
    builder = PlanBuilder(torch.float32, channels_last_3d=False)
    builder.buffer("x", (4,), torch.float32)
    builder.package("doubles", Doubles, "tensorrt-rtx", bakes=True)
    builder.call("doubles", ["x"], ["y"])
    stage = export_stage(builder.plan.packages["doubles"], {})
    stage.save(tmp_path / "doubles.onnx")
    return stage, tmp_path / "doubles.onnx"


def test_unfused_attention_is_refused(tmp_path: Path, monkeypatch):
    """A plan with fewer fused attention layers than the graph has is not accepted."""
    stage, path = exported(tmp_path)
    monkeypatch.setattr(type(stage), "attentions", 2)
    with pytest.raises(PlanError, match="0 of 2 attention layers are fused"):
        build_plan(load_library("tensorrt-rtx"), stage, path, Settings(TARGETS))


def test_settings_and_progress(tmp_path: Path):
    """The builder takes every setting, and reports the steps of its phases."""
    stage, path = exported(tmp_path)
    settings = Settings(TARGETS, optimization_level=1, aux_streams=1, workspace_mib=64)
    steps: list[tuple[str, float]] = []
    plan, report = build_plan(
        load_library("tensorrt-rtx"), stage, path, settings, lambda *step: steps.append(step)
    )
    assert len(plan) > 0 and report.layers
    done = [fraction for _, fraction in steps]
    assert done == sorted(done) and done[0] < 0.1 and done[-1] > 0.8
    assert {"Building engine", "Optimizing graph"} <= {phase for phase, _ in steps}


def test_a_cancelled_build_writes_nothing(tmp_path: Path):
    """The monitor stops the builder at its next step."""
    stage, path = exported(tmp_path)
    steps = []
    with pytest.raises(Cancelled):
        build_plan(
            load_library("tensorrt-rtx"),
            stage,
            path,
            Settings(TARGETS),
            lambda *step: steps.append(step),
            lambda: len(steps) > 3,
        )
    assert len(steps) <= 8


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Arguments of a build that takes seconds: one block, noise for weights."""
    arguments = ["--set", "dit.num_layers=1", "--set", "precision=bf16", "--weights", "synthetic"]
    arguments += ["--backend", "tensorrt-rtx", "--target", "sm_89,sm_120"]
    return [*arguments, "--out", str(tmp_path / "engine")]


def test_ctrl_c_leaves_finished_plans_only(run, small: list[str], tmp_path: Path):
    """The real command, interrupted as a terminal does it; then it goes on where it stopped."""
    stages = tmp_path / "engine.partial" / "packages"
    command = [sys.executable, "-m", "sdrt.export.cli", *small, "--keep-onnx"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 200
        while not list(stages.glob("*.json")):
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err and "goes on where this one stopped" in err
    finished = {path.stem for path in stages.glob("*.json")}
    assert {path.name.removesuffix(".layers.txt") for path in stages.glob("*.txt")} == finished
    assert {path.stem for path in stages.glob("*.plan")} == finished
    assert len(list(stages.iterdir())) == 3 * len(finished)
    graphs = {path.stem for path in (stages.parent / "onnx").glob("*.onnx")}
    assert graphs == finished and not (tmp_path / "engine.lock").exists()
    result = run(*small, "--keep-onnx")
    assert result.exit_code == 0, result.output
    assert result.output.count("taken over from the interrupted build") == len(finished)


def test_fp8_in_the_builders_log(run, small: list[str], tmp_path: Path):
    """Chosen linears are FP8 products by the builder's log; what it costs is measured."""
    result = run(*small, "--fp8", "ffn_up,ffn_down", "--calibration-steps", "2", "--explain")
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "engine")
    largest = {}
    for shape in ("first", "chunk"):
        engine = manifest.packages[f"dit_range.{shape}.0-1"].engine
        assert engine is not None and engine.fp8 is not None
        assert engine.fp8.groups == ("ffn_up", "ffn_down") and engine.fp8.gemms == 2
        assert set(engine.fp8.largest) == {"block.0.ffn.0.weight", "block.0.ffn.2.weight"}
        assert 1e-4 < engine.fp8.range_error < 0.1 and 1e-4 < engine.fp8.latent_error < 0.1
        largest |= engine.fp8.largest
    assert all(value > 0 for value in largest.values())
    others = [name for name in manifest.packages if not name.startswith("dit_range")]
    assert not any(getattr(manifest.packages[name].engine, "fp8", None) for name in others)
    assert "fp8: ffn_up, ffn_down cost a relative error of" in result.output
    assert "2 FP8 matrix products" in result.output


def test_linears_that_stay_as_they_are_are_refused(tmp_path: Path, monkeypatch):
    """A plan with fewer FP8 products than linears were quantised is not accepted."""
    stage, path = exported(tmp_path)
    stage.fp8_linears = 2
    with pytest.raises(PlanError, match="0 of 2 linears became FP8 matrix products; take the"):
        build_plan(load_library("tensorrt-rtx"), stage, path, Settings(TARGETS))


@pytest.mark.slow
def test_a_plan_of_more_than_two_gigabytes(tmp_path: Path):
    """Four blocks of the 14B model: protobuf ends at 2 GB, a file beside the graph does not."""
    preset = load("sdv2-14b-480p", ["dit.num_layers=4"])
    plan = Recipe.of(preset, "cuda", backends="tensorrt-rtx").plan()
    planned = plan.packages["dit_range.chunk.0-4"]
    # Each its own values: the builder stores equal weights once.
    weights = {
        name: torch.empty(plan.baked[name].shape, dtype=torch.bfloat16).normal_(0, 0.02)
        for name in planned.baked.values()
    }
    with torch.no_grad():
        stage = export_stage(planned, weights)
    path = tmp_path / "range.onnx"
    stage.save(path)
    assert path.stat().st_size < 1 << 26 and (tmp_path / "range.onnx.data").stat().st_size > 1 << 31
    built, report = build_plan(load_library("tensorrt-rtx"), stage, path, Settings(("sm_89",)))
    assert len(built) > 1 << 31 and report.fused_attentions == 8


class Wide(PackageModule):
    """One linear of more than 2 GB."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.nn.ModuleDict({"linear": torch.nn.Linear(24_000, 24_000)})

    def forward(self, x: Tensor) -> Tensor:
        return self.part["linear"](x)


@pytest.mark.slow
def test_a_check_of_more_than_two_gigabytes():
    """onnxruntime reads such a graph's weights from a file too. Reference: the eager module."""
    builder = PlanBuilder(torch.float32, channels_last_3d=False)
    builder.buffer("x", (1, 2, 24_000), torch.float32)
    builder.package("wide", Wide, "tensorrt-rtx", bakes=True)
    builder.call("wide", ["x"], ["y"])
    planned = builder.plan.packages["wide"]
    weights = {"part.linear.weight": torch.zeros(24_000, 24_000).fill_diagonal_(2)}
    weights["part.linear.bias"] = torch.ones(24_000)
    x, y = torch.randn(1, 2, 24_000), torch.zeros(1, 2, 24_000)
    with torch.no_grad():
        OrtProgram(export_stage(planned, weights)).run([x, y])
    assert torch.allclose(y, 2 * x + 1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["sdv2-1.3b-480p", "sdv2-1.3b-480p-taehv"])
def test_full_size_plans(run, preset: str, tmp_path: Path):
    """The 1.3B DiT, the Wan VAE and TAEHV at 832x480: fused attention, memory within a budget."""
    folder = tmp_path / "engine"
    arguments = ["--preset", preset, "--weights", "synthetic", "--backend", "tensorrt-rtx"]
    result = run(*arguments, "--target", ",".join(TARGETS), "--out", str(folder))
    assert result.exit_code == 0, result.output
    for name, package in read_manifest(folder).packages.items():
        spec = package.engine
        assert spec is not None
        if name.startswith("dit_range"):
            assert spec.fused_attentions == 20 and spec.activation_bytes < 300e6
        assert spec.activation_bytes < 4e9
    assert load(preset).dit.num_layers == 30
