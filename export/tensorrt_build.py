"""Building the TensorRT plans of an engine directory, in a process that may crash."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from sdrt.engine.config import Preset, to_dict
from sdrt.export.child import Child, ChildCrash
from sdrt.export.folder import BAKED_FOLDER
from sdrt.export.plan import Plan
from sdrt.export.progress import Progress
from sdrt.export.tensorrt import PlanError, Settings
from sdrt.runtime.manifest import Backend, EngineSpec, PackageSpec, describe_file


class PlanWorker:
    """Builds plans one after another, in a child process."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._child = Child("sdrt.export.tensorrt_worker", setup)

    def build(self, name: str, known: str | None, progress: Progress) -> dict[str, Any]:
        """Build one plan; return the child's answer.

        Args:
            known: the weights' hash of a plan that is there already.
        Raises:
            PlanError: it failed, or took the process down.
        """
        try:
            request = {"name": name, "known": known}
            answer = self._child.ask(request, lambda text: progress.step(name, text))
        except ChildCrash as crash:
            raise PlanError(
                f"plan {name}: the builder crashed ({crash}), most likely for want of "
                "memory or by a fault of the library; try smaller --ranges or another version"
            ) from None
        if "error" in answer:
            raise PlanError(f"plan {name}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()


def build_plans(
    preset: Preset,
    ranges: Sequence[tuple[int, int]],
    device: str,
    backends: Mapping[str, Backend],
    plan: Plan,
    partial: Path,
    settings: Settings,
    keep_onnx: bool,
    progress: Progress,
) -> dict[str, PackageSpec]:
    """Build every TensorRT plan of an engine directory, one at a time.

    A plan that an interrupted build left is taken over if its weights are the same.

    Args:
        partial: the work folder; the weights lie in its ``baked`` folder.
        keep_onnx: leave the ONNX files in the engine directory.
    Raises:
        PlanError: a plan cannot be built.
    """
    names = [name for name, planned in plan.packages.items() if planned.backend != "inductor"]
    if not names:
        return {}
    (partial / "onnx").mkdir(exist_ok=True)
    setup = {
        "preset": to_dict(preset),
        "ranges": list(ranges),
        "device": device,
        "backends": dict(backends),
        "settings": asdict(settings),
        "folder": str(partial),
        "weights": str(partial / BAKED_FOLDER / "weights"),
    }
    built: dict[str, PackageSpec] = {}
    with PlanWorker(setup) as worker:
        for name in names:
            known = _known(partial, name)
            if keep_onnx and not (partial / "onnx" / f"{name}.onnx").is_file():
                known = None
            progress.started(name)
            digest = known.engine.weights_sha256 if known is not None and known.engine else None
            answer = worker.build(name, digest, progress)
            if known is not None and "known" in answer:
                built[name] = known
                progress.reused(name)
                continue
            built[name] = _describe(partial, name, plan, answer)
            progress.finished(name, answer["seconds"])
            if not keep_onnx:
                for path in (partial / "onnx").glob(f"{name}.onnx*"):
                    path.unlink()
    if not keep_onnx:
        shutil.rmtree(partial / "onnx")
    shutil.rmtree(partial / BAKED_FOLDER)
    return built


def _known(partial: Path, name: str) -> PackageSpec | None:
    path = partial / "stages" / f"{name}.json"
    return PackageSpec.model_validate_json(path.read_text()) if path.is_file() else None


def _describe(partial: Path, name: str, plan: Plan, answer: Mapping[str, Any]) -> PackageSpec:
    """Describe a new plan; from now on an interrupted build keeps it."""
    planned = plan.packages[name]
    spec = PackageSpec(
        backend=planned.backend,
        **describe_file(partial, f"stages/{name}.plan").model_dump(),
        build_s=round(answer["seconds"], 2),
        arguments=planned.arguments,
        engine=EngineSpec.model_validate(answer["engine"]),
    )
    (partial / "stages" / f"{name}.json").write_text(spec.model_dump_json())
    return spec
