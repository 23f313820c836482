"""Building an engine directory: compile, try out, store the weights, write the manifest."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from sdrt.export.backends import backends_of
from sdrt.export.describe import describe
from sdrt.export.folder import (
    CHOICES_NAME,
    alone,
    check_target,
    clean,
    install,
    open_partial,
    whole_disk,
)
from sdrt.export.job import Job
from sdrt.export.plan.plan import Plan
from sdrt.export.plan.weights import plan_weights
from sdrt.export.progress import Progress
from sdrt.export.recipe import Recipe
from sdrt.export.request import BuildError, Request
from sdrt.export.store import write_text_encoder, write_weights
from sdrt.export.tune.measure import tune
from sdrt.export.variants import add_variant
from sdrt.export.work import BAKED_FOLDER, WorkFolder
from sdrt.runtime.directory.contents import Choice, PackageSpec, TextSpec, WeightsSpec
from sdrt.runtime.directory.manifest import Manifest, read_manifest, write_manifest

CHOICES = TypeAdapter(dict[str, Choice])


def build(request: Request, progress: Progress) -> Manifest:
    """Build an engine directory; it appears under its name when it is complete.

    Work in progress lies in ``<out>.partial``: packages that were finished there by an
    interrupted build of the same request are taken over.

    Raises:
        BuildError: the target is taken, not writable or being built, the disk is full, or a
            package fails.
        WeightsError: the weights do not fit.
    """
    if request.device.type == "cuda" and not torch.cuda.is_available():
        raise BuildError(
            "no CUDA device is here: packages for a GPU are built on it; or --device cpu"
        )
    check_target(request)
    with alone(request.out), whole_disk(request.out):
        check_target(request)  # another build may have finished meanwhile
        return _build(request, open_partial(request), progress)


def _build(request: Request, work: WorkFolder, progress: Progress) -> Manifest:
    choices = _choose(request, work.path)
    how = request.recipe.how | {name: choice.chosen for name, choice in choices.items()}
    recipe = request.recipe.model_copy(update={"how": how})
    plan = recipe.plan()
    stored = _background(lambda: _store(request, recipe, plan, work.path))
    packages = _build_packages(Job(request, recipe, plan, work, progress, stored))
    weights, text = stored.result()
    manifest = describe(plan, recipe, request.machine(), packages, weights, text, choices)
    if request.asked is not None:
        manifest = manifest.model_copy(update={"builds": (request.asked,)})
    write_manifest(work.path, manifest)
    clean(work)
    if request.add:
        return add_variant(work.path, manifest, request.out)
    install(work.path, request.out)
    return manifest


def _build_packages(job: Job) -> dict[str, PackageSpec]:
    """Let each backend build its packages, in the plan's order."""
    packages: dict[str, PackageSpec] = {}
    for backend in backends_of(job.recipe):
        packages |= backend.build(job)
    return {name: packages[name] for name in job.plan.packages}


def _choose(request: Request, partial: Path) -> dict[str, Choice]:
    """Time the implementations of the packages' ops; an interrupted build's choices stay."""
    if request.device.type != "cuda" or request.recipe.tensorrt.targets:
        return {}
    path = partial / CHOICES_NAME
    if path.is_file():
        return CHOICES.validate_json(path.read_bytes())
    with torch.cuda.device(request.device):
        choices = tune(request.recipe, request.device)
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


def _store(
    request: Request, recipe: Recipe, plan: Plan, partial: Path
) -> tuple[WeightsSpec, TextSpec]:
    source = request.source
    tensors = plan_weights(plan, recipe.preset, source, request.device, choices=recipe.how)
    weights = WeightsSpec(
        sources=dict(source.specs),
        synthetic=source.synthetic,
        files=write_weights(partial, tensors),
    )
    if plan.baked:
        baked = plan_weights(plan, recipe.preset, source, request.device, baked=True)
        write_weights(partial / BAKED_FOLDER, baked)
    if request.add:  # the directory has one, and it is the same for every device
        return weights, read_manifest(request.out).text
    return weights, write_text_encoder(partial, recipe.preset, source)


def table(manifest: Manifest) -> Sequence[tuple[str, str, float, float]]:
    """Return the closing table's rows: stage, artefact, MB, seconds."""
    rows = [
        (name, package.file, package.bytes / 1e6, package.build_s)
        for name, package in manifest.packages.items()
    ]
    rows += [("weights", file.file, file.bytes / 1e6, 0.0) for file in manifest.weights.files]
    rows += [("text", file.file, file.bytes / 1e6, 0.0) for file in manifest.text.files]
    return rows
