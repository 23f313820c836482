"""The TensorRT backend: plans built one after another, in a process that may crash."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sdrt.export.plan.plan import Plan
from sdrt.export.progress import Progress
from sdrt.export.quantise.fp8 import check_fp8, is_quantised
from sdrt.export.recipe import Ranges
from sdrt.export.tensorrt.child import PlanWorker
from sdrt.export.tensorrt.settings import LIBRARIES, architectures, check_installed
from sdrt.export.tensorrt.stages import default_ranges
from sdrt.export.trial import Trial
from sdrt.export.work import BAKED_FOLDER, PACKAGES_FOLDER
from sdrt.runtime.directory.contents import EngineSpec, Fp8Spec, PackageSpec, TextSpec
from sdrt.runtime.directory.manifest import describe_file

if TYPE_CHECKING:  # the first imports the session, the others ask for the backends
    from sdrt.export.job import Job
    from sdrt.export.quantise.calibrate import Calibration
    from sdrt.export.request import Request


class TensorRt:
    """Builds plans: stages with their weights, for one GPU or (RTX) for cards of a target."""

    bakes = True
    tunes = False

    def __init__(self, name: Literal["tensorrt", "tensorrt-rtx"]) -> None:
        self.name: Literal["tensorrt", "tensorrt-rtx"] = name
        self.excludes = frozenset(LIBRARIES) - {name}
        self.portable = name == "tensorrt-rtx"

    def default_ranges(self, layers: int) -> Ranges:
        """Return ranges of a few blocks each: see :func:`default_ranges`."""
        return default_ranges(layers)

    def check(self, request: "Request") -> None:
        """Refuse FP8 where there is none, and an installation that lacks something.

        Raises:
            BackendError: it names what stands in the way.
        """
        recipe = request.recipe
        if recipe.fp8 and recipe.backends["dit"] == self.name:
            cards = recipe.tensorrt.targets or architectures(request.device)
            check_fp8(recipe.preset.precision, cards)
        check_installed(self.name, request.check_onnx)

    def compiler_settings(self, device: torch.device) -> dict[str, object]:
        """Return nothing: all that TensorRT is told is in the recipe."""
        return {}

    def build(self, job: "Job") -> dict[str, PackageSpec]:
        """Build every plan of an engine directory, one at a time.

        A plan that an interrupted build left is taken over if its weights and scales are the same.

        Raises:
            PlanError: a plan cannot be built.
            TrialError: the GPU that it is for is here, and it does not run.
            CalibrationError: FP8 cannot be calibrated.
        """
        _, text = job.stored.result()
        names, request = job.names(self.name), job.request
        (job.work.path / "onnx").mkdir(exist_ok=True)
        calibration = _calibrate(job, text)
        with (
            _tidy(job),
            Trial(str(trial_device(request)), "plan", _advice) as trial,
            PlanWorker(_setup(job), job.progress) as worker,
        ):
            errors = _check(names, worker, job.progress) if request.check_onnx else {}
            builder = _Builder(job, calibration, worker, trial)
            built = {name: _with_check(builder.build(name), errors.get(name)) for name in names}
        shutil.rmtree(job.work.path / BAKED_FOLDER)
        return built

    def explain(self, folder: Path, name: str, package: PackageSpec) -> Iterator[str]:
        """Yield what TensorRT made of a plan: layers, fused attention, activation memory."""
        assert package.engine is not None
        fp8_gemms = package.engine.fp8.gemms if package.engine.fp8 else 0
        layers = (folder / package.file).with_suffix(".layers.txt").read_text().splitlines()
        yield (
            f"{name}: {len(layers)} layers, {package.engine.fused_attentions} of them fused "
            f"attention, {fp8_gemms} FP8 matrix products, "
            f"{package.engine.activation_bytes / 1e6:.1f} MB of activations"
        )
        yield from (f"  {layer}" for layer in layers)


def _check(names: Sequence[str], worker: PlanWorker, progress: Progress) -> dict[str, float]:
    """Compare every stage in onnxruntime with its eager module; return the relative errors."""
    errors = {}
    for name in names:
        errors[name] = worker.check(name)
        progress.ended(name, f"onnxruntime and the eager module agree to {errors[name]:.1e}")
    return errors


def _setup(job: "Job") -> dict[str, Any]:
    """Return what the child builds from."""
    return {
        "recipe": job.recipe.model_dump(mode="json"),
        "folder": str(job.work.path),
        "weights": str(job.work.path / BAKED_FOLDER / "weights"),
    }


@contextlib.contextmanager
def _tidy(job: "Job"):
    """Leave finished files only, however the build ends; ONNX files only if asked for."""
    try:
        yield
    finally:
        job.work.discard_unfinished()
        if not job.request.keep_onnx:
            shutil.rmtree(job.work.path / "onnx", ignore_errors=True)


def _calibrate(job: "Job", text: TextSpec) -> "Calibration | None":
    request, progress, groups = job.request, job.progress, job.recipe.fp8
    if not groups:
        return None
    from sdrt.export.quantise.calibrate import calibrate  # streams, and so imports the session

    progress.started("fp8")
    calibration = calibrate(
        job.recipe,
        request.source,
        request.device,
        text,
        request.out if request.add else job.work.path,
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

    job: "Job"
    calibration: "Calibration | None"
    worker: PlanWorker
    trial: Trial

    def build(self, name: str) -> PackageSpec:
        """Build, try out and describe one plan; or take over the one that is there."""
        known, largest = self._known(name), self._largest(name)
        digest = known.engine.weights_sha256 if known is not None and known.engine else None
        answer = self.worker.build(name, digest, largest)
        if known is not None and "known" in answer:
            self.job.progress.reused(name)
            return known
        spec = self._describe(name, answer, largest)
        request, work, progress = self.job.request, self.job.work, self.job.progress
        if trial_device(request) is not None:
            progress.step(name, 1.0, "trying it out")
            self.trial.run(name, work.path, spec, trial_integers(self.job.plan, name))
        work.keep(name, spec)
        progress.finished(name, spec.build_s)
        if not request.keep_onnx:  # as large as the weights
            for path in (work.path / "onnx").glob(f"{name}.onnx*"):
                path.unlink()
        return spec

    def _known(self, name: str) -> PackageSpec | None:
        """Return the description of a plan that an interrupted build finished."""
        work = self.job.work
        lacks_onnx = not (work.path / "onnx" / f"{name}.onnx").is_file()
        if self.job.request.keep_onnx and lacks_onnx:
            return None
        return work.finished(name)

    def _largest(self, name: str) -> dict[str, float]:
        """Return the weights of a plan's linears that run in FP8, and their largest inputs."""
        groups, own = self.job.recipe.fp8, self.job.plan.packages[name].baked.values()
        largest = {} if self.calibration is None else self.calibration.largest
        return {weight: largest[weight] for weight in own if is_quantised(weight, groups)}

    def _describe(
        self, name: str, answer: Mapping[str, Any], largest: dict[str, float]
    ) -> PackageSpec:
        planned, fp8 = self.job.plan.packages[name], None
        if largest:
            assert self.calibration is not None
            fp8 = Fp8Spec(
                groups=self.job.recipe.fp8,
                gemms=answer["fp8_gemms"],
                largest=largest,
                range_error=self.calibration.range_errors[name],
                latent_error=self.calibration.latent_error,
            )
        engine = EngineSpec.model_validate(answer["engine"])
        return PackageSpec(
            backend=planned.backend,
            **describe_file(self.job.work.path, f"{PACKAGES_FOLDER}/{name}.plan").model_dump(),
            build_s=round(answer["seconds"], 2),
            arguments=planned.arguments,
            engine=engine.model_copy(update={"fp8": fp8}),
        )


def trial_device(request: "Request") -> torch.device | None:
    """Return the GPU that is here, if the plans are for it."""
    if not torch.cuda.is_available():
        return None
    device = request.device if request.device.type == "cuda" else torch.device("cuda")
    targets = request.recipe.tensorrt.targets
    return device if not targets or architectures(device)[0] in targets else None


def trial_integers(plan: Plan, name: str) -> dict[int, int]:
    """Return argument -> value of those integers of a plan that must not be zero: key counts."""
    call, *_ = plan.calls(name)
    roles = [plan.buffers[ref.name].role for ref in call.arguments if ref.kind == "buffer"]
    return {index: 1 for index, role in enumerate(roles) if role == "length"}


def _advice(package: PackageSpec) -> str:
    assert package.engine is not None
    library = f"{package.engine.library} {package.engine.version}"
    return f"try another version than {library}, or another --stage-backend"


def _with_check(spec: PackageSpec, error: float | None) -> PackageSpec:
    assert spec.engine is not None
    engine = spec.engine.model_copy(update={"onnx_error": error})
    return spec.model_copy(update={"engine": engine})
