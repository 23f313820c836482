"""Trying out new packages in a process of their own, where they can do no harm.

The other end is :mod:`sdrt.export.trial_worker`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from sdrt.export.child import Child, ChildCrash
from sdrt.export.errors import PackageError
from sdrt.runtime.directory.contents import PackageSpec


class TrialError(PackageError):
    """A freshly built package does not load or run."""


class Trial:
    """Loads each package once and runs it once, in a child process."""

    def __init__(self, device: str, noun: str, advice: Callable[[PackageSpec], str]) -> None:
        """Start nothing yet.

        Args:
            noun: what messages call a package.
            advice: what to change where a package takes the process down.
        """
        self._device, self._noun, self._advice = device, noun, advice
        self._child = Child("sdrt.export.trial_worker")

    def run(
        self,
        name: str,
        folder: Path,
        package: PackageSpec,
        integers: Mapping[int, int] | None = None,
    ) -> None:
        """Load and run one package.

        Args:
            integers: argument -> what an integer argument is filled with instead of zeros.
        Raises:
            TrialError: it failed, or took the process down; the message says what to change.
        """
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
                f"{self._noun} {name} was built but crashes when loaded or run ({crash}); "
                + self._advice(package)
            ) from None
        if error := answer["error"]:
            raise TrialError(f"{self._noun} {name} was built but does not run: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()
