"""Fixtures for all tests: the package layout without an install, golden cases, built engines."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("SDRT_GOLDEN", ROOT / "tests" / "golden"))


def link_layout() -> None:
    """Make a bare checkout importable as ``sdrt``, in child processes too.

    The links are those that an editable install makes (see CMakeLists.txt).
    """
    layout = ROOT / "build" / "layout"
    (layout / "sdrt").mkdir(parents=True, exist_ok=True)
    for folder in ("engine", "kernels", "export", "runtime", "configs", "bench"):
        link = layout / "sdrt" / folder
        try:
            link.symlink_to(os.path.relpath(ROOT / folder, link.parent))
        except FileExistsError:
            continue
    sys.path.insert(0, str(layout))
    paths = [str(layout), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


if importlib.util.find_spec("sdrt") is None:
    link_layout()

# Parallel workers, and the processes that they start, share the cores.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# The C++ around a package's kernels takes a third of its compilation, and next to no time to run.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")

import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def load_recipe() -> ModuleType:
    """Import the golden cases' weight recipe from the repository."""
    spec = importlib.util.spec_from_file_location(
        "golden_recipe", ROOT / "tests" / "golden" / "recipe.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def invoke():
    """Callable: run a command's ``main``; return ``exit_code``, ``stdout``, ``stderr``, both."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> SimpleNamespace:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        both = out.getvalue() + err.getvalue()
        return SimpleNamespace(
            exit_code=code, stdout=out.getvalue(), stderr=err.getvalue(), output=both
        )

    return run


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """The module that draws a golden case's weights: ``synthetic_state_dict(shapes, seed)``."""
    return load_recipe()


@pytest.fixture(scope="session")
def golden():
    """Callable: case name -> (tensors, description)."""

    def load(name: str) -> tuple[dict[str, torch.Tensor], dict]:
        description = json.loads((GOLDEN / f"{name}.json").read_text())
        return load_file(GOLDEN / f"{name}.safetensors"), description

    return load


@pytest.fixture(scope="session")
def relative_error():
    """Callable: ``||out - ref|| / ||ref||`` in float64; the shapes must match."""

    def measure(out: torch.Tensor, ref: torch.Tensor) -> float:
        assert out.shape == ref.shape, f"shape {tuple(out.shape)} != {tuple(ref.shape)}"
        out64, ref64 = out.double().cpu(), ref.double().cpu()
        return float((out64 - ref64).norm() / ref64.norm().clamp_min(1e-30))

    return measure


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` on machines without a CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


class GoldenStreams:
    """Runs a session against the streaming golden cases.

    The same checks serve eager modules and compiled packages: only the session differs.
    """

    STREAM_BATCH = ("sdv2_stream_batch", "sdv2_stream_batch_sink_refresh")
    ROLLOUT = ("self_forcing", "self_forcing_local")

    def __init__(self, recipe: ModuleType, golden, relative_error) -> None:
        self.recipe, self.golden, self.relative_error = recipe, golden, relative_error

    def preset(self, name: str):
        """Return the preset of a case; its autoencoder is small and plays no part."""
        from sdrt.engine.preset.preset import from_dict

        case = self.golden(name)[1]
        height, width = case["latent_hw"]
        rollout = name in self.ROLLOUT
        frames = 3 if rollout else 1
        return from_dict(
            {
                "name": name.replace("_", "-"),
                "flow": "rollout" if rollout else "stream-batch",
                "precision": "fp32",
                "dit": case["model"],
                "stream": {
                    "height": 8 * height,
                    "width": 8 * width,
                    "chunk_latent_frames": frames,
                    "window_frames": case["window_frames" if rollout else "num_kv_cache_frames"],
                    "sink_frames": case["sink_frames" if rollout else "num_sink_frames"],
                    "sink_refresh_threshold": case.get("sink_refresh_threshold", -1.0),
                },
                "schedule": {
                    "steps": case.get("denoising_steps", [1000, 750, 500, 250]),
                    "shift": case["scheduler"]["shift"],
                    "warp": rollout,
                    "noise_scale": None if rollout else 0.7,
                    "clean_pass": rollout,
                },
                "encoder": "none" if rollout else "taehv",
                "decoder": "taehv",
                "taehv": {"encoder_width": 8, "decoder_widths": [8, 8, 8, 8]},
                "latents": {"normalise_encoder": False, "denormalise_decoder": False},
                "text": "hashed-words",
            }
        )

    def source(self, name: str):
        """Return the weights of a case: drawn by the recipe, as the references got them."""
        recipe, seed = self.recipe, self.golden(name)[1]["seed"]

        class Source:
            specs, synthetic = {"dit": "golden recipe"}, True

            def load(self, component, expected, device="cpu", dtype=None):
                return recipe.synthetic_state_dict(expected, seed)

            def tokenizer_folder(self):
                return None

        return Source()

    @torch.inference_mode()
    def _start(self, session, tensors, noises) -> None:
        """Prepare a session whose noise comes from the case: buffer name -> iterator."""
        session.prepare("unused", seed=0)
        session.steps.set_condition("prompt", tensors["prompt_embeds"])

        def fill(buffer: str, target: torch.Tensor) -> None:
            value = next(noises[buffer])
            target[: len(value)].copy_(value)  # the last row of a stream batch takes no noise

        session.steps.fill_noise = fill

    @torch.inference_mode()
    def stream_batch_errors(self, session, name: str) -> list[float]:
        """Return the relative error of the first x0 and of the batch after every AR step."""
        tensors, case = self.golden(name)
        steps = len(case["denoising_steps"])
        first = [tensors["first_renoise"]] * (steps - 1)
        if tensors["first_renoise"].ndim == 6:
            first = list(tensors["first_renoise"])
        first.append(torch.zeros_like(tensors["first_noisy"]))
        noises = {
            "renoise.first": iter(first),
            "renoise.steady": iter(tensors["chunk_renoise"].flatten(1, 2)),
        }
        self._start(session, tensors, noises)
        buffers = session.buffers
        buffers["noisy.first"].copy_(tensors["first_noisy"])
        session.steps.run(0, "diffuse")
        errors = [self.relative_error(buffers["latent.first"], tensors["first_x0"])]
        for index, noisy in enumerate(tensors["chunk_noisy"]):
            buffers["encoded.noisy"].copy_(noisy.unsqueeze(0))
            buffers["encoded.timestep"].copy_(tensors["chunk_timestep"][index])
            session.steps.run(index + 1, "diffuse")
            hidden = tensors["chunk_hidden"][index]
            errors.append(self.relative_error(buffers["latent.steady"], hidden))
        return errors

    @torch.inference_mode()
    def rollout_errors(self, session, name: str) -> list[float]:
        """Return the relative error of every chunk's x0."""
        tensors, _ = self.golden(name)
        renoise = []
        for chunk in tensors["renoise"]:
            renoise += [*chunk.unsqueeze(1), torch.zeros_like(chunk[:1])]
        noises = {
            "noisy": iter(tensors["noise"].unsqueeze(1)),
            "renoise": iter(renoise),
        }
        self._start(session, tensors, noises)
        errors = []
        for index, x0 in enumerate(tensors["x0"]):
            session.steps.run(index, "diffuse")
            errors.append(self.relative_error(session.buffers["latent"][0], x0))
            session.steps.run(index, "finalize")
        return errors

    def errors(self, session, name: str) -> list[float]:
        """Return the relative errors of a case, AR step by AR step."""
        run = self.rollout_errors if name in self.ROLLOUT else self.stream_batch_errors
        return run(session, name)


@pytest.fixture(scope="session")
def golden_streams(recipe, golden, relative_error) -> GoldenStreams:
    """The streaming golden cases: presets, weights and checks of a session."""
    return GoldenStreams(recipe, golden, relative_error)


class EngineCache:
    """Engines that tests run, built by the real builder and kept in pytest's cache folder.

    One that was built from the same sources is used again; parallel workers build it once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, request, make: Callable[[Path], object]) -> Path:
        """Return the engine of an ``export.request.Request``; ``make`` builds it where it is told.

        The request's ``out`` is ignored.
        """
        from sdrt.export.request import build_key
        from sdrt.runtime.directory import manifest

        sources = build_key(request) + manifest.file_sha256(Path(manifest.__file__))
        name, key = request.recipe.preset.name, hashlib.sha256(sources.encode()).hexdigest()[:16]
        target = self.folder / f"{name}--{key}"
        with FileLock(self.folder / f"{name}.lock"):
            if not target.exists():
                for stale in self.folder.glob(f"{name}--*"):
                    if key not in stale.name:
                        shutil.rmtree(stale)
                make(target)
        return target


@pytest.fixture(scope="session")
def engine_cache(pytestconfig: pytest.Config) -> EngineCache:
    """The engines that earlier test runs, or other workers of this one, have built."""
    assert pytestconfig.cache is not None
    return EngineCache(pytestconfig.cache.mkdir("sdrt-engines"))


@pytest.fixture(scope="session")
def tiny_engine(engine_cache: EngineCache) -> Path:
    """An engine directory of the preset ``tiny``, built by ``build-engines`` for the CPU.

    Shared: a test that changes it works on a copy.
    """
    from sdrt.engine.preset.preset import load
    from sdrt.engine.weights.source import open_source
    from sdrt.export.recipe import Recipe
    from sdrt.export.request import Request

    preset = load("tiny")
    source = open_source("bundled", preset)
    request = Request(Recipe.of(preset), source, Path("unused"), torch.device("cpu"))

    def make(target: Path) -> None:
        command = [sys.executable, "-m", "sdrt.export.cli", "--preset", "tiny"]
        command += ["--device", "cpu", "--out", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return engine_cache.get(request, make)


@pytest.fixture(scope="session")
def built_packages(engine_cache: EngineCache):
    """Callable: a real engine that holds only some of a preset's packages.

    ``build(preset, source, keep)`` exports, compiles, tries out and stores the packages whose
    names ``keep`` accepts; the stages call those and leave the others out.
    """
    from rich.console import Console

    from sdrt.export.build import build as build_engine
    from sdrt.export.progress import Progress
    from sdrt.export.recipe import Recipe
    from sdrt.export.request import Request

    whole_plan = Recipe.plan

    def build(preset, source, keep: Callable[[str], bool]) -> Path:
        def some_packages(recipe: Recipe):
            plan = whole_plan(recipe)
            plan.packages = {n: package for n, package in plan.packages.items() if keep(n)}
            for name, stage in plan.stages.items():
                calls = tuple(call for call in stage.calls if keep(call.package))
                plan.stages[name] = stage.model_copy(update={"calls": calls})
            return plan

        def request(out: Path) -> Request:
            return Request(Recipe.of(preset), source, out, torch.device("cpu"))

        def make(target: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Recipe, "plan", some_packages)
                with Progress(Console(quiet=True), 0) as progress:
                    build_engine(request(target), progress)

        return engine_cache.get(request(Path("unused")), make)

    return build
