"""The loaders of all backends, and what they load of an engine directory."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from sdrt.kernels.library import library
from sdrt.runtime.directory.contents import PackageSpec
from sdrt.runtime.directory.manifest import Manifest, ManifestError
from sdrt.runtime.programs.aoti import AotiLoader
from sdrt.runtime.programs.program import Loader, LoadError, Program
from sdrt.runtime.programs.tensorrt import PlanLoader

LOADERS: dict[str, Loader] = {
    "inductor": AotiLoader(),
    "tensorrt": PlanLoader(),
    "tensorrt-rtx": PlanLoader(),
}
"""Backend -> what loads its packages."""


def check_programs(directory: Path, manifest: Manifest, device: torch.device) -> None:
    """Refuse packages that do not fit the versions here, or the device.

    Raises:
        ManifestError: both values are named, and what to do.
    """
    for loader, packages in _by_loader(manifest):
        loader.check(directory, manifest, packages, device)


def load_programs(directory: Path, manifest: Manifest, device: torch.device) -> dict[str, Program]:
    """Load every package of an engine directory.

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
    programs: dict[str, Program] = {}
    try:
        for loader, packages in _by_loader(manifest):
            programs |= loader.load(directory, packages, device)
    except LoadError as error:
        raise ManifestError(
            f"{directory}: {error}; rebuild it: {manifest.rebuild_command(directory)}"
        ) from None
    return programs


def are_exclusive(manifest: Manifest) -> bool:
    """Tell whether no two of an engine's programs may run at once."""
    return any(loader.exclusive for loader, _ in _by_loader(manifest))


def keep_compiled(manifest: Manifest, programs: Mapping[str, Program]) -> None:
    """Store what was compiled for this card while all programs ran for the first time."""
    for loader, packages in _by_loader(manifest):
        loader.keep_compiled([programs[name] for name in packages])


def _by_loader(manifest: Manifest) -> Iterator[tuple[Loader, dict[str, PackageSpec]]]:
    for backend, loader in LOADERS.items():
        packages = {n: spec for n, spec in manifest.packages.items() if spec.backend == backend}
        if packages:
            yield loader, packages
