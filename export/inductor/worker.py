"""What runs in the build's child processes: compiling packages, trying out what was built."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sdrt.engine.preset.preset import from_dict
from sdrt.export.child import Requests
from sdrt.export.inductor.package import CompileError, compile_package, example_arguments
from sdrt.export.plan.make import make_plan
from sdrt.export.plan.plan import Plan
from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.manifest import Backend, PackageSpec
from sdrt.runtime.programs.aoti import AotiProgram, Program
from sdrt.runtime.programs.tensorrt import load_plans

_plan: Plan | None = None
_device = torch.device("cpu")


def start_compiler(
    preset: dict,
    ranges: Sequence[tuple[int, int]],
    device: str,
    threads: int,
    backends: Mapping[str, Backend],
    choices: Mapping[str, str],
) -> None:
    """Set up a pool process: it makes the plan once and then compiles packages by name."""
    global _plan, _device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder gets it too, and ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch's own, once a package
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    _device = torch.device(device)
    if _device.type == "cpu":
        torch.set_num_threads(1)
    _plan = make_plan(from_dict(preset), ranges, _device.type, backends, how=choices)


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


def try_packages() -> None:
    """Load and run the packages and plans that are asked for; a crash ends the process.

    A request is ``{"name", "folder", "package", "device", "integers"}``; the answer is
    ``{"error"}``, null if all went well.
    """
    requests = Requests()
    for request in requests:
        error = None
        try:
            try_one(
                request["name"],
                Path(request["folder"]),
                PackageSpec.model_validate(request["package"]),
                torch.device(request["device"]),
                dict(request["integers"]),
            )
        except (RuntimeError, SdrtError) as failure:
            error = str(failure).strip().splitlines()[0]
        requests.answer({"error": error})


@torch.inference_mode()
def try_one(
    name: str,
    folder: Path,
    package: PackageSpec,
    device: torch.device,
    integers: Mapping[int, int],
) -> None:
    """Load a package or plan as a session does, and run it once on noise.

    Args:
        integers: argument -> what it is filled with; other integers are zeros.
    Raises:
        RuntimeError, SdrtError: it does not load, or does not run.
    """
    program: Program
    if package.engine is not None:
        program = load_plans(folder, {name: package}, device)[name]
    else:
        index = -1 if device.type == "cpu" else device.index or 0
        program = AotiProgram(folder / package.file, index)
    # TensorRT does not run on the default stream.
    with torch.cuda.stream(torch.cuda.Stream(device) if device.type == "cuda" else None):
        arguments = example_arguments(package.arguments, device)
        for argument, value in integers.items():
            arguments[argument].fill_(value)
        program.run(arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    try_packages()
