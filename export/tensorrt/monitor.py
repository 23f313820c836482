"""TensorRT's progress monitor: nested phases as one fraction, and the way to stop a build."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


class Phases:
    """The phases that are under way, outermost first: each is one step of the one around it."""

    def __init__(self) -> None:
        self._open: list[_Phase] = []
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins inside ``parent``."""
        self._cut(parent)
        self._open.append(_Phase(name, max(1, steps)))

    def step(self, name: str, step: int) -> None:
        """Step ``step``, counted from 0, of a phase is done."""
        self._cut(name)
        if self._open:
            self._open[-1].done = min(step + 1, self._open[-1].steps)

    def finish(self, name: str) -> None:
        """A phase is done."""
        self._cut(name)
        if self._open:
            self._open.pop()

    @property
    def name(self) -> str:
        """The innermost phase."""
        return self._open[-1].name if self._open else ""

    @property
    def fraction(self) -> float:
        """What is done of the whole, 0 to 1; it never falls."""
        total, share = 0.0, 1.0
        for phase in self._open:
            total += share * phase.done / phase.steps
            share /= phase.steps
        self._fraction = max(self._fraction, min(total, 1.0))
        return self._fraction

    def _cut(self, name: str | None) -> None:
        """Forget what is inside of a phase."""
        names = [phase.name for phase in self._open]
        del self._open[names.index(name) + 1 if name in names else 0 :]


def make_monitor(
    trt: Any, on_progress: Callable[[str, float], object], cancelled: Callable[[], bool]
) -> Any:
    """Return a progress monitor for a builder.

    Args:
        on_progress: called with the phase's name and the fraction of the whole that is done.
        cancelled: asked at every step; once it says so, the builder stops.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, phase_name, parent_phase, num_steps) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)
            on_progress(self.phases.name, self.phases.fraction)

        def step_complete(self, phase_name, step) -> bool:
            self.phases.step(phase_name, step)
            on_progress(self.phases.name, self.phases.fraction)
            return not cancelled()

        def phase_finish(self, phase_name) -> None:
            self.phases.finish(phase_name)

    return Monitor()
