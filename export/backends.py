"""What compiles stages: the interface of a backend, and the backends that there are."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from sdrt.engine.preset.preset import Preset
from sdrt.export.errors import BackendError
from sdrt.export.inductor.backend import Inductor
from sdrt.export.recipe import Ranges, Recipe, stage_names
from sdrt.export.tensorrt.backend import TensorRt
from sdrt.runtime.directory.contents import Backend as BackendName
from sdrt.runtime.directory.contents import PackageSpec

if TYPE_CHECKING:  # both ask this module
    from sdrt.export.job import Job
    from sdrt.export.request import Request


class Backend(Protocol):
    """Compiles the packages of some stages."""

    @property
    def name(self) -> BackendName:
        """What the command line and manifests call it."""
        ...

    @property
    def excludes(self) -> frozenset[str]:
        """Backends that cannot be in one engine with it."""
        ...

    @property
    def bakes(self) -> bool:
        """Whether weights become part of its files; else a package takes them as arguments."""
        ...

    @property
    def tunes(self) -> bool:
        """Whether the implementations of its ops are chosen by measurement before a build."""
        ...

    @property
    def portable(self) -> bool:
        """Whether its files run on every card of a target, not only where they were built."""
        ...

    def default_ranges(self, layers: int) -> Ranges:
        """Return how the DiT is split unless something else is asked for."""
        ...

    def check(self, request: "Request") -> None:
        """Refuse, before any work, what it cannot build or what lacks an installation.

        Raises:
            BackendError: it names what stands in the way.
        """
        ...

    def compiler_settings(self, device: torch.device) -> Mapping[str, object]:
        """Return what its files depend on besides recipe, sources and versions."""
        ...

    def build(self, job: "Job") -> dict[str, PackageSpec]:
        """Build its packages of a plan and try them out; finished ones are taken over.

        Raises:
            PackageError: one cannot be made or does not run.
        """
        ...

    def explain(self, folder: Path, name: str, package: PackageSpec) -> Iterable[str]:
        """Yield what its compiler made of a package, line by line.

        Args:
            folder: the engine directory.
        """
        ...


_ALL: tuple[Backend, ...] = (Inductor(), TensorRt("tensorrt"), TensorRt("tensorrt-rtx"))
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}
"""Name -> backend, in the order in which they build."""


def backends_of(recipe: Recipe) -> list[Backend]:
    """Return the backends that a recipe uses, in the order in which they build."""
    used = set(recipe.backends.values())
    return [backend for name, backend in BACKENDS.items() if name in used]


def choose_backends(
    preset: Preset, backend: str, stage_backends: Sequence[str]
) -> dict[str, BackendName]:
    """Return stage -> backend.

    Args:
        backend: of all stages; stage_backends: ``STAGE=BACKEND`` for single ones.
    Raises:
        BackendError: no such stage or backend, or two that exclude each other.
    """
    chosen = dict.fromkeys(stage_names(preset), backend)
    for pair in stage_backends:
        stage, _, value = pair.partition("=")
        if stage not in chosen:
            known = ", ".join(chosen)
            raise BackendError(f"--stage-backend {pair}: no such stage; this preset has {known}")
        chosen[stage] = value
    for value in (backend, *chosen.values()):
        if value not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise BackendError(f"backend {value!r}: no such backend; use one of {known}")
    used = set(chosen.values())
    for name, one in BACKENDS.items():
        if name in used and (others := one.excludes & used):
            pair = " and ".join(sorted({name, *others}))
            raise BackendError(f"backends {pair} in one engine: choose one of them")
    return {stage: BACKENDS[value].name for stage, value in chosen.items()}
