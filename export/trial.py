"""Trying out new packages and plans in a process of their own, where they can do no harm."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from sdrt.export.child import Child, ChildCrash
from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.manifest import PackageSpec


class TrialError(SdrtError):
    """A freshly built package does not load or run."""


class Trial:
    """Loads each package once and runs it once, in a child process."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._child = Child("sdrt.export.inductor.worker")

    def run(
        self,
        name: str,
        folder: Path,
        package: PackageSpec,
        integers: Mapping[int, int] | None = None,
    ) -> None:
        """Load and run one package or plan.

        Args:
            integers: argument -> what an integer argument is filled with instead of zeros.
        Raises:
            TrialError: it failed, or took the process down; the message says what to change.
        """
        kind = "package" if package.engine is None else "plan"
        request = {
            "name": name,
            "folder": str(folder),
            "package": package.model_dump(mode="json"),
            "device": self._device,
            "integers": list((integers or {}).items()),
        }
        try:
            answer = self._child.ask(request)
        except ChildCrash as crash:
            raise TrialError(
                f"{kind} {name} was built but crashes when loaded or run ({crash}); "
                + _advice(package)
            ) from None
        if error := answer["error"]:
            raise TrialError(f"{kind} {name} was built but does not run: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()


def _advice(package: PackageSpec) -> str:
    if package.engine is not None:
        library = f"{package.engine.library} {package.engine.version}"
        return f"try another version than {library}, or another --stage-backend"
    compiler = os.environ.get("CXX", "the default C++ compiler (g++)")
    return (
        f"it was compiled with {compiler}: set CXX to another compiler, "
        "such as CXX=/usr/bin/g++, and build again"
    )
