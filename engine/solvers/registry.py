"""All solvers by name, and the one that a preset denoises with."""

from collections.abc import Callable

from sdrt.engine.preset.sections import ScheduleConfig
from sdrt.engine.solvers.renoise import Renoise
from sdrt.engine.solvers.solver import Solver

SOLVERS: dict[str, Callable[[ScheduleConfig], Solver]] = {"renoise": Renoise}
"""Name -> what makes the solver of a preset's noise levels."""


def make_solver(schedule: ScheduleConfig) -> Solver:
    """Return the solver of a preset; as there is one, presets do not name theirs yet."""
    return SOLVERS["renoise"](schedule)
