"""Building the TensorRT plans of an engine directory, in a process that may crash."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from sdrt.engine.preset.preset import to_dict
from sdrt.export.child import Child, ChildCrash
from sdrt.export.disk import DiskFullError
from sdrt.export.folder import BAKED_FOLDER, discard_unfinished
from sdrt.export.plan.builder import Plan
from sdrt.export.progress import Progress
from sdrt.export.quantise.calibrate import Calibration, calibrate
from sdrt.export.quantise.fp8 import is_quantised
from sdrt.export.request import Request
from sdrt.export.tensorrt.builder import PlanError
from sdrt.export.tensorrt.choice import architectures
from sdrt.export.trial import Trial
from sdrt.runtime.directory.manifest import (
    EngineSpec,
    Fp8Spec,
    PackageSpec,
    TextSpec,
    describe_file,
)


class PlanWorker:
    """Checks and builds plans one after another, in a child process."""

    def __init__(self, setup: Mapping[str, Any], progress: Progress) -> None:
        self._child = Child("sdrt.export.tensorrt.worker", setup)
        self._progress = progress

    def check(self, name: str) -> float:
        """Compare a plan's graph with the eager module; return the relative error.

        Raises:
            PlanError: it is beyond the tolerance, or took the process down.
        """
        return self._ask(name, "checking in onnxruntime", {"check": name})["error_found"]

    def build(self, name: str, known: str | None, largest: Mapping[str, float]) -> dict[str, Any]:
        """Build one plan; return the child's answer.

        Args:
            known: the hash of a plan's weights and scales that is there already.
            largest: the weights of linears to quantise, with the largest inputs of these.
        Raises:
            PlanError: it failed, or took the process down.
            DiskFullError: it does not fit on the disk.
        """
        request = {"name": name, "known": known, "largest": dict(largest)}
        return self._ask(name, "exporting", request)

    def _ask(self, name: str, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        def show(step: Mapping[str, Any]) -> None:
            self._progress.step(name, step["done"], step["phase"])

        self._progress.started(name)
        self._progress.step(name, 0.0, what)
        try:
            answer = self._child.ask(request, show)
        except ChildCrash as crash:
            raise PlanError(
                f"plan {name}: the builder crashed ({crash}), most likely for want of "
                "memory or by a fault of the library; try smaller --ranges or another version"
            ) from None
        if "error" in answer:
            kind = DiskFullError if answer["disk_full"] else PlanError
            raise kind(f"plan {name}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()


def build_plans(
    request: Request, plan: Plan, partial: Path, progress: Progress, text: TextSpec
) -> dict[str, PackageSpec]:
    """Build every TensorRT plan of an engine directory, one at a time.

    A plan that an interrupted build left is taken over if its weights and scales are the same.

    Args:
        partial: the work folder; the weights lie in its ``baked`` folder.
        text: what encodes prompts.
    Raises:
        PlanError: a plan cannot be built.
        TrialError: the GPU that it is for is here, and it does not run.
        CalibrationError: FP8 cannot be calibrated.
    """
    names = [name for name, planned in plan.packages.items() if planned.backend != "inductor"]
    if not names:
        return {}
    (partial / "onnx").mkdir(exist_ok=True)
    calibration = _calibrate(request, partial, progress, text)
    with (
        _tidy(request, partial),
        Trial(str(trial_device(request))) as trial,
        PlanWorker(_setup(request, partial), progress) as worker,
    ):
        errors = _check(names, worker, progress) if request.check_onnx else {}
        builder = _Builder(request, plan, partial, progress, calibration, worker, trial)
        built = {name: _with_check(builder.build(name), errors.get(name)) for name in names}
    shutil.rmtree(partial / BAKED_FOLDER)
    return built


def _check(names: Sequence[str], worker: PlanWorker, progress: Progress) -> dict[str, float]:
    """Compare every stage in onnxruntime with its eager module; return the relative errors."""
    errors = {}
    for name in names:
        errors[name] = worker.check(name)
        progress.ended(name, f"onnxruntime and the eager module agree to {errors[name]:.1e}")
    return errors


def _setup(request: Request, partial: Path) -> dict[str, Any]:
    """Return what the child builds from."""
    return {
        "preset": to_dict(request.preset),
        "ranges": list(request.ranges),
        "device": "cuda" if request.tensorrt.targets else request.device.type,
        "backends": dict(request.backends),
        "settings": asdict(request.tensorrt),
        "folder": str(partial),
        "weights": str(partial / BAKED_FOLDER / "weights"),
    }


@contextlib.contextmanager
def _tidy(request: Request, partial: Path):
    """Leave finished files only, however the build ends; ONNX files only if asked for."""
    try:
        yield
    finally:
        discard_unfinished(partial)
        if not request.keep_onnx:
            shutil.rmtree(partial / "onnx", ignore_errors=True)


def _calibrate(
    request: Request, partial: Path, progress: Progress, text: TextSpec
) -> Calibration | None:
    groups = request.tensorrt.fp8
    if not groups:
        return None
    progress.started("fp8")
    calibration = calibrate(
        request.preset,
        request.source,
        request.ranges,
        request.device,
        groups,
        text,
        request.out if request.add else partial,
        request.calibration,
        lambda done, phase: progress.step("fp8", done, phase),
    )
    worst = max(calibration.range_errors.values())
    progress.ended(
        "fp8",
        f"{', '.join(groups)} cost a relative error of {calibration.latent_error:.2%} in the "
        f"latents after {request.calibration.steps} AR steps, {worst:.2%} in a range alone",
    )
    return calibration


@dataclass(frozen=True)
class _Builder:
    """Builds the plans of one engine directory."""

    request: Request
    plan: Plan
    partial: Path
    progress: Progress
    calibration: Calibration | None
    worker: PlanWorker
    trial: Trial

    def build(self, name: str) -> PackageSpec:
        """Build, try out and describe one plan; or take over the one that is there."""
        known, largest = self._known(name), self._largest(name)
        digest = known.engine.weights_sha256 if known is not None and known.engine else None
        answer = self.worker.build(name, digest, largest)
        if known is not None and "known" in answer:
            self.progress.reused(name)
            return known
        spec = self._describe(name, answer, largest)
        if trial_device(self.request) is not None:
            self.progress.step(name, 1.0, "trying it out")
            self.trial.run(name, self.partial, spec, trial_integers(self.plan, name))
        # From now on an interrupted build keeps it.
        (self.partial / "stages" / f"{name}.json").write_text(spec.model_dump_json())
        self.progress.finished(name, spec.build_s)
        if not self.request.keep_onnx:  # as large as the weights
            for path in (self.partial / "onnx").glob(f"{name}.onnx*"):
                path.unlink()
        return spec

    def _known(self, name: str) -> PackageSpec | None:
        """Return the description of a plan that an interrupted build finished."""
        path = self.partial / "stages" / f"{name}.json"
        lacks_onnx = not (self.partial / "onnx" / f"{name}.onnx").is_file()
        if not path.is_file() or (self.request.keep_onnx and lacks_onnx):
            return None
        return PackageSpec.model_validate_json(path.read_text())

    def _largest(self, name: str) -> dict[str, float]:
        """Return the weights of a plan's linears that run in FP8, and their largest inputs."""
        groups, own = self.request.tensorrt.fp8, self.plan.packages[name].baked.values()
        largest = {} if self.calibration is None else self.calibration.largest
        return {weight: largest[weight] for weight in own if is_quantised(weight, groups)}

    def _describe(
        self, name: str, answer: Mapping[str, Any], largest: dict[str, float]
    ) -> PackageSpec:
        planned, fp8 = self.plan.packages[name], None
        if largest:
            assert self.calibration is not None
            fp8 = Fp8Spec(
                groups=self.request.tensorrt.fp8,
                gemms=answer["fp8_gemms"],
                largest=largest,
                range_error=self.calibration.range_errors[name],
                latent_error=self.calibration.latent_error,
            )
        engine = EngineSpec.model_validate(answer["engine"])
        return PackageSpec(
            backend=planned.backend,
            **describe_file(self.partial, f"stages/{name}.plan").model_dump(),
            build_s=round(answer["seconds"], 2),
            arguments=planned.arguments,
            engine=engine.model_copy(update={"fp8": fp8}),
        )


def trial_device(request: Request) -> torch.device | None:
    """Return the GPU that is here, if the plans are for it."""
    if not torch.cuda.is_available():
        return None
    device = request.device if request.device.type == "cuda" else torch.device("cuda")
    targets = request.tensorrt.targets
    return device if not targets or architectures(device)[0] in targets else None


def trial_integers(plan: Plan, name: str) -> dict[int, int]:
    """Return argument -> value of those integers of a plan that must not be zero: key counts."""
    calls = [call for stage in plan.stages for call in stage.calls if call.package == name]
    return {
        index: 1
        for index, argument in enumerate(calls[0].arguments)
        if argument.partition(".")[0] == "valid"
    }


def _with_check(spec: PackageSpec, error: float | None) -> PackageSpec:
    assert spec.engine is not None
    engine = spec.engine.model_copy(update={"onnx_error": error})
    return spec.model_copy(update={"engine": engine})
