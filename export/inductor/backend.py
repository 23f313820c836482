"""The Inductor backend: packages compiled several at once, each tried out when it is finished."""

import os
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from sdrt.export.errors import BackendError
from sdrt.export.inductor.package import CompileError, options
from sdrt.export.inductor.worker import compile_one, start_compiler
from sdrt.export.recipe import Ranges
from sdrt.export.trial import Trial, TrialError
from sdrt.export.work import PACKAGES_FOLDER
from sdrt.runtime.directory.contents import PackageSpec
from sdrt.runtime.directory.manifest import describe_file

if TYPE_CHECKING:  # both ask for the backends
    from sdrt.export.job import Job
    from sdrt.export.request import Request


class Inductor:
    """Compiles packages that take their weights as arguments, on the machine they run on."""

    name: Literal["inductor"] = "inductor"
    excludes: frozenset[str] = frozenset()
    bakes = False
    tunes = True
    portable = False

    def default_ranges(self, layers: int) -> Ranges:
        """Return one range: the same packages serve every split."""
        return ((0, layers),)

    def check(self, request: "Request") -> None:
        """Refuse FP8.

        Raises:
            BackendError: stages of TensorRT are needed for it.
        """
        recipe = request.recipe
        if recipe.fp8 and recipe.backends["dit"] == self.name:
            raise BackendError(
                "--fp8: stage dit is built by inductor; only TensorRT plans take FP8"
            )

    def compiler_settings(self, device: torch.device) -> dict[str, object]:
        """Return Inductor's settings and the C++ compiler."""
        return {"options": options(device), "compiler": os.environ.get("CXX")}

    def build(self, job: "Job") -> dict[str, PackageSpec]:
        """Compile what is missing, several packages at once, and try each one out.

        Raises:
            CompileError: a package cannot be compiled.
            TrialError: it does not load or run.
        """
        built = {}
        for name in job.names(self.name):
            if (known := job.work.finished(name)) is not None:
                built[name] = known
                job.progress.reused(name)
        missing = [name for name in job.names(self.name) if name not in built]
        # The slowest first, so that no long compilation is left alone at the end.
        missing.sort(key=lambda name: len(job.plan.packages[name].arguments), reverse=True)
        return built | _compile(job, missing)

    def explain(self, folder: Path, name: str, package: PackageSpec) -> Iterable[str]:
        """Yield nothing: what Inductor made of a package, its own logs show."""
        return ()


def _compile(job: "Job", names: list[str]) -> dict[str, PackageSpec]:
    jobs = min(job.request.jobs or _default_jobs(job.request.device), max(1, len(names)))
    built: dict[str, PackageSpec] = {}
    with (
        Trial(str(job.request.device), "package", lambda _: _advice()) as trial,
        _pool(job, jobs) as pool,
    ):
        futures: dict[Future[float], str] = {}
        for name in names:
            path = job.work.packages / f"{name}.pt2"
            futures[pool.submit(compile_one, name, str(path))] = name
        pending = {job.stored, *futures}
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in pending & futures.keys():
                if future.running():
                    job.progress.started(futures[future])
            for future in done:
                if future is job.stored:
                    job.stored.result()
                    continue
                name, seconds = futures[future], future.result()
                built[name] = _accept(name, job, seconds, trial)
                job.progress.finished(name, seconds)
    return built


@contextmanager
def _pool(job: "Job", jobs: int):
    """Yield the compiling processes; when the body fails, they end at once."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    arguments = (job.recipe.model_dump_json(), str(job.request.device), threads)
    others = set(active_children())
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=start_compiler, initargs=arguments
    )
    with pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()  # nobody waits for what it is compiling
            if isinstance(error, BrokenProcessPool):
                raise CompileError(
                    "a compiling process was killed, most likely for want of memory; "
                    "try again with fewer at once: --jobs 1"
                ) from error
            raise


def _accept(name: str, job: "Job", seconds: float, trial: Trial) -> PackageSpec:
    """Try a new package out and describe it; from now on an interrupted build keeps it."""
    work, file = job.work, f"{PACKAGES_FOLDER}/{name}.pt2"
    spec = PackageSpec(
        backend=Inductor.name,
        **describe_file(work.path, file).model_dump(),
        build_s=round(seconds, 2),
        arguments=job.plan.packages[name].arguments,
    )
    try:
        trial.run(name, work.path, spec)
    except TrialError:
        (work.path / file).unlink()
        raise
    work.keep(name, spec)
    return spec


def _advice() -> str:
    compiler = os.environ.get("CXX", "the default C++ compiler (g++)")
    return (
        f"it was compiled with {compiler}: set CXX to another compiler, "
        "such as CXX=/usr/bin/g++, and build again"
    )


def _default_jobs(device: torch.device) -> int:
    """Packages to compile at once: a GPU build leaves most cores to Inductor's own workers."""
    cores = os.cpu_count() or 1
    return max(1, min(8, cores // 2)) if device.type == "cuda" else max(1, min(8, cores))
