"""Building an engine directory: compile, try out, store the weights, write the manifest."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from sdrt.engine.config import Preset, to_dict
from sdrt.engine.weights import Source
from sdrt.export.choices import choose
from sdrt.export.describe import describe, describe_device, versions
from sdrt.export.inductor import CompileError, options
from sdrt.export.mixed import add_variant, check_addition
from sdrt.export.pipeline import Pipeline
from sdrt.export.plan import Plan
from sdrt.export.progress import Progress
from sdrt.export.store import write_text_encoder, write_weights
from sdrt.export.tensorrt import PlanError, Settings
from sdrt.export.tensorrt_build import BAKED_FOLDER, build_plans
from sdrt.export.tensorrt_pipeline import make_pipeline
from sdrt.export.trial import Trial, TrialError
from sdrt.export.weights import plan_weights
from sdrt.export.worker import compile_one, start_compiler
from sdrt.kernels.library import library_path
from sdrt.runtime.manifest import (
    MANIFEST_NAME,
    Backend,
    Choice,
    DeviceSpec,
    FileSpec,
    Manifest,
    PackageSpec,
    TextSpec,
    WeightsSpec,
    describe_file,
    read_manifest,
    write_manifest,
)

KEY_NAME = "build.key"
"""In a work folder: what the packages in it were built from."""

CHOICES_NAME = "choices.json"
"""Beside it: the implementations that were the fastest."""
CHOICES = TypeAdapter(dict[str, Choice])


class BuildError(ValueError):
    """An engine directory could not be built; the message says why and what to do."""


@dataclass(frozen=True)
class Request:
    """What to build, for which device, and where."""

    preset: Preset
    source: Source
    out: Path
    device: torch.device
    ranges: tuple[tuple[int, int], ...]
    """Consecutive block ranges of the DiT."""
    force: bool = False
    """Replace an engine directory that is there."""
    jobs: int | None = None
    """Packages compiled at once; by default as many as cores and memory allow."""
    backends: Mapping[str, Backend] = field(default_factory=dict)
    """Stage -> backend; Inductor for all unless given."""
    tensorrt: Settings = Settings()
    """How TensorRT plans are built; with targets, ``device`` is only where weights convert."""
    keep_onnx: bool = False
    """Leave the ONNX files of the plans in the engine directory."""
    add: bool = False
    """Add a variant for another device to an engine directory that is there."""

    def pipeline(self, choices: Mapping[str, str] | None = None) -> Pipeline:
        """Return the pipeline of the preset for these backends."""
        kind = "cuda" if self.tensorrt.targets else self.device.type
        return make_pipeline(
            self.preset, self.ranges, kind, self.backends, self.tensorrt.ring, choices
        )

    def machine(self) -> DeviceSpec:
        """Return the device that is built for."""
        targets = self.tensorrt.targets
        if not targets or set(self.backends.values()) != {"tensorrt-rtx"}:
            return describe_device(self.device)
        name = ", ".join(targets)
        return DeviceSpec(type="cuda", name=name, capability=None, driver=None, targets=targets)


def default_folder(preset: Preset, device: torch.device, targets: Sequence[str] = ()) -> str:
    """Return the name of an engine directory: ``<preset>--<gpu>-sm90--bf16``."""
    if targets:
        machine = "-".join(target.replace("_", "") for target in targets)
    elif device.type == "cpu":
        machine = "cpu"
    else:
        name = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ")
        major, minor = torch.cuda.get_device_capability(device)
        machine = f"{name.replace(' ', '-')}-sm{major}{minor}"
    return f"{preset.name}--{machine}--{preset.precision}"


def parse_ranges(text: str | None, layers: int) -> tuple[tuple[int, int], ...]:
    """Return the block ranges of ``0:15,15:30``.

    Raises:
        BuildError: they are not consecutive or do not cover all layers.
    """
    if text is None:
        return ((0, layers),)
    rule = f"must be consecutive and cover blocks 0 to {layers}, such as 0:{layers}"
    try:
        ranges = tuple(tuple(int(end) for end in part.split(":")) for part in text.split(","))
    except ValueError:
        ranges = ()
    ends = [end for part in ranges for end in part]
    starts = [0, *(part[-1] for part in ranges)]
    fits = ends and all(len(part) == 2 and part[0] < part[1] for part in ranges)
    if not fits or ends[::2] != starts[:-1] or ends[-1] != layers:
        raise BuildError(f"--ranges {text}: {rule}")
    return tuple((first, last) for first, last in ranges)


def build(request: Request, progress: Progress) -> Manifest:
    """Build an engine directory; it appears under its name when it is complete.

    Work in progress lies in ``<out>.partial``: packages that were finished there by an
    interrupted build of the same request are taken over.

    Raises:
        BuildError: the target is taken or not writable, or a package fails.
        WeightsError: the weights do not fit.
    """
    _check_target(request)
    if request.device.type == "cuda" and not torch.cuda.is_available():
        raise BuildError(
            "no CUDA device is here: packages for a GPU are built on it; or --device cpu"
        )
    partial = _open_partial(request)
    choices = _choose(request, partial)
    chosen = {name: choice.chosen for name, choice in choices.items()}
    plan = request.pipeline(chosen).plan()
    stored = _background(lambda: _store(request, plan, partial, chosen))
    packages = _compile(request, plan, partial, progress, stored, chosen)
    weights, text = stored.result()
    packages |= _build_plans(request, plan, partial, progress)
    packages = {name: packages[name] for name in plan.packages}
    manifest = describe(plan, request.preset, request.machine(), packages, weights, text, choices)
    write_manifest(partial, manifest)
    _clean(partial)
    if request.add:
        return add_variant(partial, manifest, request.out)
    _install(partial, request.out)
    return manifest


def _choose(request: Request, partial: Path) -> dict[str, Choice]:
    """Time the implementations of the packages' ops; an interrupted build's choices stay."""
    if request.device.type != "cuda" or request.tensorrt.targets:
        return {}
    path = partial / CHOICES_NAME
    if path.is_file():
        return CHOICES.validate_json(path.read_bytes())
    choices = choose(request.preset, request.device, request.backends)
    path.write_bytes(CHOICES.dump_json(choices))
    return choices


def _background(function: Callable[[], Any]) -> Future[Any]:
    """Run a function beside the compilation, in a thread that does not hold up an exit."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # handed over to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def build_key(request: Request) -> str:
    """Return a hash of everything that a package depends on: request, versions, our sources."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("engine", "kernels", "export"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    if (library := library_path()) is not None:
        digest.update(library.read_bytes())
    facts = {
        "preset": to_dict(request.preset),
        "device": request.machine().model_dump(),
        "backends": dict(request.backends),
        "tensorrt": asdict(request.tensorrt),
        "versions": versions(),
        "options": options(request.device),
        "compiler": os.environ.get("CXX"),
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _check_target(request: Request) -> None:
    """Refuse to replace an engine unasked, and anything that is no engine at all."""
    out = request.out
    if request.add:
        return check_addition(out, request.preset, request.source.description, request.machine())
    if not out.exists():
        return
    if not (out / MANIFEST_NAME).is_file():
        raise BuildError(f"{out}: exists and is not an engine directory; choose another --out")
    if not request.force:
        raise BuildError(f"{out}: exists already; use --force to build it again")


def _open_partial(request: Request) -> Path:
    """Return the work folder; all that an interrupted build left in it are finished packages."""
    partial = request.out.with_name(request.out.name + ".partial")
    key = build_key(request)
    key_file = partial / KEY_NAME
    try:
        if partial.exists() and any(partial.iterdir()):
            if not key_file.is_file():
                raise BuildError(f"{partial}: in the way of the build, and not made by one")
            for folder in ("weights", "text", BAKED_FOLDER):
                shutil.rmtree(partial / folder, ignore_errors=True)
            for path in (partial / "stages").glob("*.tmp.pt2"):
                path.unlink()
            if key_file.read_text() != key:
                shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        key_file.write_text(key)
        (partial / "stages").mkdir(exist_ok=True)
    except OSError as error:
        raise BuildError(f"{request.out}: cannot be written ({error.strerror})") from None
    return partial


def _store(
    request: Request, plan: Plan, partial: Path, choices: Mapping[str, str]
) -> tuple[WeightsSpec, TextSpec]:
    source = request.source
    tensors = plan_weights(plan, request.preset, source, request.device, choices=choices)
    weights = WeightsSpec(
        source=source.description,
        synthetic=source.synthetic,
        files=write_weights(partial, tensors),
    )
    if plan.baked:
        baked = plan_weights(plan, request.preset, source, request.device, baked=True)
        write_weights(partial / BAKED_FOLDER, baked)
    if request.add:  # the directory has one, and it is the same for every device
        return weights, read_manifest(request.out).text
    return weights, write_text_encoder(partial, request.preset, source)


def _build_plans(
    request: Request, plan: Plan, partial: Path, progress: Progress
) -> dict[str, PackageSpec]:
    kind = "cuda" if request.tensorrt.targets else request.device.type
    try:
        return build_plans(
            request.preset,
            request.ranges,
            kind,
            request.backends,
            plan,
            partial,
            request.tensorrt,
            request.keep_onnx,
            progress,
        )
    except PlanError as error:
        raise BuildError(str(error)) from error


def _compile(
    request: Request,
    plan: Plan,
    partial: Path,
    progress: Progress,
    stored: Future,
    choices: Mapping[str, str],
) -> dict[str, PackageSpec]:
    """Compile what is missing, several packages at once, and try each one out.

    Args:
        stored: the weights, on their way; when they fail, so does the build, at once.
        choices: what the plan was made with.
    """
    built: dict[str, PackageSpec] = {}
    missing = []
    names = [name for name, planned in plan.packages.items() if planned.backend == "inductor"]
    if not names:
        stored.result()
        return {}
    for name in names:
        known = partial / "stages" / f"{name}.json"
        if known.is_file():
            built[name] = PackageSpec.model_validate_json(known.read_text())
            progress.reused(name)
        else:
            missing.append(name)
    # The slowest first, so that no long compilation is left alone at the end.
    missing.sort(key=lambda name: len(plan.packages[name].arguments), reverse=True)
    jobs = min(request.jobs or _default_jobs(request.device), max(1, len(missing)))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    backends = dict(request.backends)
    arguments = (
        *(to_dict(request.preset), request.ranges, str(request.device)),
        *(threads, backends, choices),
    )
    others = set(active_children())
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=start_compiler, initargs=arguments
    )
    with pool, Trial(str(request.device)) as trial:
        futures: dict[Future[float], str] = {}
        for name in missing:
            path = partial / "stages" / f"{name}.pt2"
            futures[pool.submit(compile_one, name, str(path))] = name
        pending = {stored, *futures}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in pending & futures.keys():
                    if future.running():
                        progress.started(futures[future])
                for future in done:
                    if future is stored:
                        stored.result()
                        continue
                    name, seconds = futures[future], future.result()
                    built[name] = _accept(name, plan, partial, seconds, trial)
                    progress.finished(name, seconds)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()  # nobody waits for what it is compiling
            if isinstance(error, (CompileError, TrialError, BrokenProcessPool)):
                raise BuildError(_explain(error)) from error
            raise
    stored.result()
    return built


def _accept(name: str, plan: Plan, partial: Path, seconds: float, trial: Trial) -> PackageSpec:
    """Try a new package out and describe it; from now on an interrupted build keeps it."""
    file = f"stages/{name}.pt2"
    arguments = plan.packages[name].arguments
    try:
        trial.run(name, partial / file, arguments)
    except TrialError:
        (partial / file).unlink()
        raise
    described: FileSpec = describe_file(partial, file)
    spec = PackageSpec(
        backend="inductor",
        **described.model_dump(),
        build_s=round(seconds, 2),
        arguments=arguments,
    )
    (partial / "stages" / f"{name}.json").write_text(spec.model_dump_json())
    return spec


def _explain(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return (
            "a compiling process was killed, most likely for want of memory; "
            "try again with fewer at once: --jobs 1"
        )
    return str(error)


def _default_jobs(device: torch.device) -> int:
    """Packages to compile at once: a GPU build leaves most cores to Inductor's own workers."""
    cores = os.cpu_count() or 1
    return max(1, min(8, cores // 2)) if device.type == "cuda" else max(1, min(8, cores))


def _clean(partial: Path) -> None:
    """Remove what only an interrupted build needs."""
    (partial / KEY_NAME).unlink()
    (partial / CHOICES_NAME).unlink(missing_ok=True)
    for path in (partial / "stages").glob("*.json"):
        path.unlink()


def _install(partial: Path, out: Path) -> None:
    """Put the finished directory in place; an old one stays until the new one is complete."""
    retired = None
    if out.exists():
        retired = out.with_name(f"{out.name}.{time.time_ns()}.old")
        out.rename(retired)
    partial.rename(out)
    if retired is not None:
        shutil.rmtree(retired)


def table(manifest: Manifest) -> Sequence[tuple[str, str, float, float]]:
    """Return the closing table's rows: stage, artefact, MB, seconds."""
    rows = [
        (name, package.file, package.bytes / 1e6, package.build_s)
        for name, package in manifest.packages.items()
    ]
    rows += [("weights", file.file, file.bytes / 1e6, 0.0) for file in manifest.weights.files]
    rows += [("text", file.file, file.bytes / 1e6, 0.0) for file in manifest.text.files]
    return rows
