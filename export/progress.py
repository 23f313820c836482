"""What a build shows: a bar per compiling package, a line per finished one, a closing table."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows the packages of one build."""

    def __init__(self, console: Console, total: int) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._all = self._bars.add_task("packages", total=total)
        self._began = time.perf_counter()

    def started(self, name: str) -> None:
        """A package waits for a compiler or has one."""

    def step(self, name: str, text: str) -> None:
        """A package's builder is at a step of a phase, such as ``Compiling 3/7``."""
        self._bars.update(self._all, description=f"{name}: {text}")

    def finished(self, name: str, seconds: float) -> None:
        """A package is compiled and has run."""
        self._bars.console.print(f"  {name}: compiled in {seconds:.1f} s")
        self._bars.advance(self._all)

    def reused(self, name: str) -> None:
        """A package of an interrupted build is taken over."""
        self._bars.console.print(f"  {name}: taken over from the interrupted build")
        self._bars.advance(self._all)

    @property
    def seconds(self) -> float:
        """Seconds since the build began."""
        return time.perf_counter() - self._began

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
