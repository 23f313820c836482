"""What runs in the processes that compile packages."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from sdrt.export.inductor.package import CompileError, compile_package
from sdrt.export.plan.plan import Plan
from sdrt.export.recipe import Recipe

_plan: Plan | None = None
_device = torch.device("cpu")


def start_compiler(recipe: str, device: str, threads: int) -> None:
    """Set up a pool process: it makes the plan once and then compiles packages by name.

    Args:
        recipe: as JSON.
        device: the one that packages are compiled for.
        threads: of Inductor's own workers.
    """
    global _plan, _device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder gets it too, and ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch's own, once a package
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    _device = torch.device(device)
    if _device.type == "cpu":
        torch.set_num_threads(1)
    _plan = Recipe.model_validate_json(recipe).plan()


def compile_one(name: str, path: str) -> float:
    """Compile package ``name`` to ``path``; return the seconds it took.

    Raises:
        CompileError: with the package's name in front.
    """
    assert _plan is not None
    started = time.perf_counter()
    scratch = Path(path).with_suffix(".tmp.pt2")
    try:
        compile_package(_plan.packages[name], scratch, _device)
    except CompileError as error:
        scratch.unlink(missing_ok=True)
        raise CompileError(f"package {name}: {error}") from error.__cause__
    scratch.rename(path)
    return time.perf_counter() - started
