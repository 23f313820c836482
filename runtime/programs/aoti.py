"""Programs: loaded packages behind one call over a flat list of tensors."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sdrt.kernels.library import library
from sdrt.runtime.directory.manifest import Manifest, ManifestError
from sdrt.runtime.programs.tensorrt import load_plans


class Program(Protocol):
    """A stage's code: reads and writes the tensors it is given, returns nothing."""

    def run(self, arguments: Sequence[Tensor]) -> None:
        """Run once on the current stream; results are written into ``arguments``."""
        ...


class AotiProgram:
    """An AOTInductor package.

    The loader class is used directly: ``torch._inductor.aoti_load_package`` would import the
    compiler and probe the CPU with a C++ compiler first. The single-threaded run keeps CUDA
    events out of the call, so it can be captured.
    """

    def __init__(self, path: Path, device_index: int) -> None:
        self._loader = torch._C._aoti.AOTIModelPackageLoader(  # pyright: ignore
            str(path), "model", True, 1, device_index
        )

    def run(self, arguments: Sequence[Tensor]) -> None:
        self._loader.boxed_run(list(arguments))


def load_programs(directory: Path, manifest: Manifest, device: torch.device) -> dict[str, Program]:
    """Load every package and plan of an engine directory.

    Raises:
        ManifestError: a package cannot be loaded.
    """
    if manifest.ops and library() is None:
        raise ManifestError(
            f"{directory}: its packages call sdrt's compiled kernels, which are not here; "
            "install sdrt again with nvcc on the PATH, or rebuild the engine: "
            f"{manifest.rebuild_command(directory)}"
        )
    for module in manifest.ops:
        importlib.import_module(module)
    index = -1 if device.type == "cpu" else (device.index or 0)
    programs: dict[str, Program] = {}
    plans = {name: package for name, package in manifest.packages.items() if package.engine}
    if plans:
        programs |= load_plans(directory, plans, device)
    for name, package in manifest.packages.items():
        if package.engine is not None:
            continue
        try:
            programs[name] = AotiProgram(directory / package.file, index)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ManifestError(
                f"{directory}: package {name} does not load ({reason}); "
                f"rebuild it: {manifest.rebuild_command(directory)}"
            ) from None
    return programs
