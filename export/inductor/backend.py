"""Compiling the Inductor packages of an engine directory, several at once, and trying them out."""

import os
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from sdrt.engine.preset.preset import to_dict
from sdrt.export.inductor.package import CompileError
from sdrt.export.inductor.worker import compile_one, start_compiler
from sdrt.export.plan.plan import Plan
from sdrt.export.progress import Progress
from sdrt.export.request import BuildError, Request
from sdrt.export.trial import Trial, TrialError
from sdrt.runtime.directory.manifest import FileSpec, PackageSpec, describe_file


def compile_packages(
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
    described: FileSpec = describe_file(partial, file)
    spec = PackageSpec(
        backend="inductor",
        **described.model_dump(),
        build_s=round(seconds, 2),
        arguments=arguments,
    )
    try:
        trial.run(name, partial, spec)
    except TrialError:
        (partial / file).unlink()
        raise
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
