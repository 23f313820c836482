"""What runs in the TensorRT build's child process: exporting stages and building their plans."""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdrt.engine.config import from_dict
from sdrt.export.child import Requests
from sdrt.export.onnx_export import ExportError, OnnxStage, export_stage
from sdrt.export.plan import PlannedPackage
from sdrt.export.tensorrt import BuildReport, PlanError, Settings, build_plan, load_library
from sdrt.export.tensorrt_pipeline import make_pipeline
from sdrt.runtime.manifest import EngineSpec


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
    plan_path: Path,
    onnx_path: Path,
    settings: Settings,
    on_progress: Any,
) -> tuple[OnnxStage, BuildReport]:
    """Export one package, build its plan and write both.

    Raises:
        ExportError, PlanError: one of the two fails.
    """
    with torch.no_grad():
        stage = export_stage(planned, weights)
    stage.save(onnx_path)
    plan, report = build_plan(trt, stage, onnx_path, settings, on_progress)
    scratch = plan_path.with_suffix(".tmp")
    scratch.write_bytes(plan)
    scratch.rename(plan_path)
    return stage, report


def describe_engine(
    trt: Any,
    backend: str,
    planned: PlannedPackage,
    stage: OnnxStage,
    report: BuildReport,
    settings: Settings,
    weights_hash: str,
    precision: str,
) -> EngineSpec:
    """Return what the manifest says of a plan."""
    flags = {k: v for k, v in asdict(settings).items() if k != "targets" and v is not None}
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


def serve(requests: Requests) -> None:
    """Build the plans that are asked for; a crash ends the process.

    The first request says what to build from; then each is ``{"name", "known"}``, where
    ``known`` is the weights' hash of a plan that is there already. The answers are
    ``{"progress"}``, any number of them, then ``{"engine", "seconds"}``, ``{"known"}`` or
    ``{"error"}``.
    """
    pending, answer = iter(requests), requests.answer
    setup = next(pending)
    preset = from_dict(setup["preset"])
    ranges = [tuple(part) for part in setup["ranges"]]
    settings = Settings(**setup["settings"] | {"targets": tuple(setup["settings"]["targets"])})
    arguments = (preset, ranges, setup["device"], setup["backends"], settings.ring)
    plan = make_pipeline(*arguments).plan()
    folder, files = Path(setup["folder"]), WeightFiles(Path(setup["weights"]))
    for request in pending:
        name, planned = request["name"], plan.packages[request["name"]]
        started = time.perf_counter()
        weights = files.load(planned.baked.values())
        digest = weights_sha256(weights)
        if digest == request["known"]:
            answer({"known": digest})
            continue
        onnx_path = folder / "onnx" / f"{name}.onnx"
        plan_path = folder / "stages" / f"{name}.plan"

        def report_step(phase: str, step: int, steps: int) -> None:
            answer({"progress": f"{phase} {step}/{steps}"})

        try:
            trt = load_library(planned.backend)
            stage, report = build_one(
                trt, planned, weights, plan_path, onnx_path, settings, report_step
            )
        except (ExportError, PlanError) as error:
            answer({"error": str(error)})
            continue
        plan_path.with_suffix(".layers.txt").write_text("\n".join(report.layers) + "\n")
        engine = describe_engine(
            trt, planned.backend, planned, stage, report, settings, digest, preset.precision
        )
        seconds = time.perf_counter() - started
        answer({"engine": engine.model_dump(mode="json"), "seconds": seconds})


def main() -> None:
    """Serve the builder."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    serve(Requests())


if __name__ == "__main__":
    main()
