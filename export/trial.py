"""Trying out new packages in a process of their own, where a bad compiler can do no harm."""

import os
from pathlib import Path
from typing import Self

from sdrt.export.child import Child, ChildCrash
from sdrt.runtime.manifest import TensorSpec


class TrialError(RuntimeError):
    """A freshly built package does not load or run."""


class Trial:
    """Loads each package once and runs it once, in a child process."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._child = Child("sdrt.export.worker")

    def run(self, name: str, path: Path, arguments: tuple[TensorSpec, ...]) -> None:
        """Load and run one package.

        Raises:
            TrialError: it failed, or took the process down; the message names the compiler.
        """
        request = {
            "path": str(path),
            "device": self._device,
            "arguments": [spec.model_dump() for spec in arguments],
        }
        try:
            answer = self._child.ask(request)
        except ChildCrash as crash:
            compiler = os.environ.get("CXX", "the default C++ compiler (g++)")
            raise TrialError(
                f"package {name} was built but crashes when loaded or run ({crash}); "
                f"it was compiled with {compiler}: set CXX to another compiler, "
                "such as CXX=/usr/bin/g++, and build again"
            ) from None
        if error := answer["error"]:
            raise TrialError(f"package {name} was built but does not run: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()
