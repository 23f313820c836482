"""The process that exports and builds plans, seen from the build: it may crash."""

from collections.abc import Mapping
from typing import Any, Self

from sdrt.export.child import Child, ChildCrash
from sdrt.export.disk import DiskFullError
from sdrt.export.progress import Progress
from sdrt.export.tensorrt.builder import PlanError


class PlanWorker:
    """Checks and builds plans one after another, in a child process."""

    def __init__(self, setup: Mapping[str, Any], progress: Progress) -> None:
        self._child = Child("sdrt.export.tensorrt.worker", setup)
        self._progress = progress

    def check(self, name: str) -> float:
        """Compare a plan's graph with the eager module; return the relative error.

        Raises:
            PlanError: it is beyond the tolerance, or took the process down.
        """
        return self._ask(name, "checking in onnxruntime", {"check": name})["error_found"]

    def build(self, name: str, known: str | None, largest: Mapping[str, float]) -> dict[str, Any]:
        """Build one plan; return the child's answer.

        Args:
            known: the hash of a plan's weights and scales that is there already.
            largest: the weights of linears to quantise, with the largest inputs of these.
        Raises:
            PlanError: it failed, or took the process down.
            DiskFullError: it does not fit on the disk.
        """
        request = {"name": name, "known": known, "largest": dict(largest)}
        return self._ask(name, "exporting", request)

    def _ask(self, name: str, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        def show(step: Mapping[str, Any]) -> None:
            self._progress.step(name, step["done"], step["phase"])

        self._progress.started(name)
        self._progress.step(name, 0.0, what)
        try:
            answer = self._child.ask(request, show)
        except ChildCrash as crash:
            raise PlanError(
                f"plan {name}: the builder crashed ({crash}), most likely for want of "
                "memory or by a fault of the library; try smaller --ranges or another version"
            ) from None
        if "error" in answer:
            kind = DiskFullError if answer["disk_full"] else PlanError
            raise kind(f"plan {name}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()
