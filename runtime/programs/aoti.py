"""AOTInductor packages: compiled for one machine, one version of torch."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdrt.runtime.directory.contents import PackageSpec
from sdrt.runtime.directory.manifest import MachineError, Manifest
from sdrt.runtime.programs.program import LoadError, Program


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


class AotiLoader:
    """Loads AOTInductor packages."""

    exclusive = False

    def check(
        self,
        directory: Path,
        manifest: Manifest,
        packages: Mapping[str, PackageSpec],
        device: torch.device,
    ) -> None:
        """Refuse packages of another torch.

        Raises:
            MachineError: it names both versions.
        """
        built = manifest.versions.get("torch")
        if built != torch.__version__:
            raise MachineError(
                directory,
                f"built with torch {built}, this is torch {torch.__version__}; "
                f"rebuild it here: {manifest.rebuild_command(directory)}",
            )

    def load(
        self, directory: Path, packages: Mapping[str, PackageSpec], device: torch.device
    ) -> dict[str, AotiProgram]:
        """Return the packages' programs.

        Raises:
            LoadError: a package cannot be loaded.
        """
        index = -1 if device.type == "cpu" else (device.index or 0)
        programs = {}
        for name, package in packages.items():
            try:
                programs[name] = AotiProgram(directory / package.file, index)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise LoadError(f"package {name} does not load ({reason})") from None
        return programs

    def keep_compiled(self, programs: Iterable[Program]) -> None:
        """Nothing is compiled when a package runs."""
