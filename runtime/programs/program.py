"""What a loaded package is, and what loads those of one backend."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sdrt.runtime.directory.contents import PackageSpec
from sdrt.runtime.directory.manifest import Manifest, ManifestError


class LoadError(ManifestError):
    """A package that does not load; the message names it, and the reason."""


class Program(Protocol):
    """A package's code: reads and writes the tensors it is given, returns nothing."""

    def run(self, arguments: Sequence[Tensor]) -> None:
        """Run once on the current stream; results are written into ``arguments``."""
        ...


class Loader(Protocol):
    """Loads the packages of one backend."""

    @property
    def exclusive(self) -> bool:
        """Whether its programs share memory, so that no two of a session may run at once."""
        ...

    def check(
        self,
        directory: Path,
        manifest: Manifest,
        packages: Mapping[str, PackageSpec],
        device: torch.device,
    ) -> None:
        """Refuse packages that were built with another version, or not for this device.

        Args:
            manifest: of ``directory``; ``packages`` are those of it that are the backend's.
        Raises:
            ManifestError: both values are named, and what to do.
        """
        ...

    def load(
        self, directory: Path, packages: Mapping[str, PackageSpec], device: torch.device
    ) -> Mapping[str, Program]:
        """Return the packages' programs.

        Raises:
            LoadError: a package cannot be loaded.
        """
        ...

    def keep_compiled(self, programs: Iterable[Program]) -> None:
        """Store what was compiled for this card while all programs ran for the first time."""
        ...
