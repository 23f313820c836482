"""What runs in the TensorRT build's child process: exporting stages and building their plans."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdrt.export.child import Requests
from sdrt.export.disk import disk_is_full
from sdrt.export.plan.plan import PlannedPackage
from sdrt.export.recipe import Recipe
from sdrt.export.tensorrt.builder import (
    BuildReport,
    Cancelled,
    PlanError,
    build_plan,
    load_library,
)
from sdrt.export.tensorrt.check import StageCheck
from sdrt.export.tensorrt.fp8_nodes import insert_fp8
from sdrt.export.tensorrt.onnx import ExportError, OnnxStage, export_stage
from sdrt.export.tensorrt.onnxruntime import CheckError
from sdrt.export.tensorrt.settings import Settings
from sdrt.export.work import PACKAGES_FOLDER
from sdrt.runtime.directory.contents import EngineSpec


class WeightFiles:
    """The weights that plans take in, by name, out of safetensors files."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            archive = safe_open(path, framework="pt", device="cpu")
            self._files |= dict.fromkeys(archive.keys(), archive)

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors."""
        return {name: self._files[name].get_tensor(name) for name in names}


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """Return a hash of tensors and their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def build_one(
    trt: Any,
    planned: PlannedPackage,
    weights: dict[str, Tensor],
    largest: Mapping[str, float],
    plan_path: Path,
    onnx_path: Path,
    settings: Settings,
    on_progress: Callable[[str, float], object],
    cancelled: Callable[[], bool],
) -> tuple[OnnxStage, BuildReport]:
    """Export one package, build its plan and write both.

    Args:
        largest: the weights of linears that run in FP8, with the largest inputs of these.
    Raises:
        ExportError, PlanError: one of the two fails.
    """
    with torch.no_grad():
        stage = export_stage(planned, weights)
        insert_fp8(stage, largest)
    on_progress("writing the graph", 0.0)
    stage.save(onnx_path)
    plan, report = build_plan(trt, stage, onnx_path, settings, on_progress, cancelled)
    scratch = plan_path.with_suffix(".tmp")
    scratch.write_bytes(plan)
    scratch.rename(plan_path)
    return stage, report


def describe_engine(
    trt: Any,
    planned: PlannedPackage,
    stage: OnnxStage,
    report: BuildReport,
    settings: Settings,
    weights_hash: str,
    precision: str,
) -> EngineSpec:
    """Return what the manifest says of a plan."""
    flags = {key: value for key, value in asdict(settings).items() if value is not None}
    del flags["targets"]  # they have a field of their own
    direct = (*stage.inputs, *stage.outputs, *stage.caches)
    return EngineSpec(
        library=trt.__name__,
        version=trt.__version__,
        targets=settings.targets,
        precision=precision,
        graph_sha256=stage.graph_sha256(),
        weights_sha256=weights_hash,
        flags=flags,
        addresses=tuple((binding.tensor, binding.argument) for binding in direct),
        banks=tuple((binding.tensor, binding.argument) for binding in stage.banks),
        activation_bytes=report.activation_bytes,
        fused_attentions=report.fused_attentions,
    )


class Reporter:
    """Sends the progress of a build, a few times a second at most."""

    INTERVAL_S = 0.1

    def __init__(self, requests: Requests) -> None:
        self._requests, self._sent = requests, 0.0

    def __call__(self, phase: str, done: float) -> None:
        now = time.monotonic()
        if now - self._sent >= self.INTERVAL_S:
            self._sent = now
            self._requests.answer({"progress": {"phase": phase, "done": round(done, 4)}})


class Worker:
    """Checks and builds the plans of one setup."""

    def __init__(self, setup: Mapping[str, Any], requests: Requests) -> None:
        """Take what says what to build from, and where answers go."""
        self._requests = requests
        self._recipe = Recipe.model_validate(setup["recipe"])
        self._plan = self._recipe.plan()
        self._folder, self._files = Path(setup["folder"]), WeightFiles(Path(setup["weights"]))
        self._checks: StageCheck | None = None

    def check(self, name: str) -> dict[str, Any]:
        """Compare a stage in onnxruntime with the eager module: ``{"error_found"}``."""
        if self._checks is None:
            exact = self._recipe.in_precision("fp32")
            self._checks = StageCheck(exact.preset, exact.plan())
        weights = self._files.load(self._plan.packages[name].baked.values())
        return {"error_found": self._checks.run(name, weights)}

    def build(self, name: str, known: str | None, largest: Mapping[str, float]) -> dict[str, Any]:
        """Build a plan: ``{"engine", "fp8_gemms", "seconds"}``; or ``{"known"}``."""
        started = time.perf_counter()
        planned, settings = self._plan.packages[name], self._recipe.tensorrt
        weights = self._files.load(planned.baked.values())
        scales = {f"{key}.largest": torch.tensor(value) for key, value in largest.items()}
        digest = weights_sha256(weights | scales)
        if digest == known:
            return {"known": digest}
        plan_path = self._folder / PACKAGES_FOLDER / f"{name}.plan"
        trt = load_library(planned.backend)
        stage, report = build_one(
            trt,
            planned,
            weights,
            largest,
            plan_path,
            self._folder / "onnx" / f"{name}.onnx",
            settings,
            Reporter(self._requests),
            self._requests.ended.is_set,
        )
        plan_path.with_suffix(".layers.txt").write_text("\n".join(report.layers) + "\n")
        precision = self._recipe.preset.precision
        engine = describe_engine(trt, planned, stage, report, settings, digest, precision)
        seconds = time.perf_counter() - started
        described = engine.model_dump(mode="json")
        return {"engine": described, "fp8_gemms": report.fp8_gemms, "seconds": seconds}


def serve(requests: Requests) -> None:
    """Check and build the plans that are asked for; a crash ends the process.

    The first request says what to build from; then each is ``{"check": name}`` or
    ``{"name", "known", "largest"}``, where ``known`` is the hash of the weights and scales of a
    plan that is there already. The answers are ``{"progress"}``, any number of them, then what
    :class:`Worker` returns, or ``{"error", "disk_full"}``.
    """
    pending = iter(requests)
    worker = Worker(next(pending), requests)
    for request in pending:
        try:
            if "check" in request:
                answer = worker.check(request["check"])
            else:
                answer = worker.build(**request)
        except Cancelled:
            return
        except (ExportError, PlanError, CheckError) as error:
            answer = {"error": str(error), "disk_full": disk_is_full(error)}
        except OSError as error:
            reason = f"cannot be written ({error.strerror or error})"
            answer = {"error": reason, "disk_full": disk_is_full(error)}
        requests.answer(answer)


def main() -> None:
    """Serve the builder."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    serve(Requests())


if __name__ == "__main__":
    main()
