"""A build that is under way, as backends see it."""

from concurrent.futures import Future
from dataclasses import dataclass

from sdrt.export.plan.plan import Plan
from sdrt.export.progress import Progress
from sdrt.export.recipe import Recipe
from sdrt.export.request import Request
from sdrt.export.work import WorkFolder
from sdrt.runtime.directory.contents import TextSpec, WeightsSpec


@dataclass(frozen=True)
class Job:
    """What a backend builds its packages from."""

    request: Request
    recipe: Recipe
    """The request's, with the implementations that were chosen."""
    plan: Plan
    """The recipe's."""
    work: WorkFolder
    progress: Progress
    stored: Future[tuple[WeightsSpec, TextSpec]]
    """The data files, on their way; when they fail, so does the build, at once."""

    def names(self, backend: str) -> list[str]:
        """Return the packages that are a backend's."""
        return [name for name, p in self.plan.packages.items() if p.backend == backend]
