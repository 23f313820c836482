"""What a build shows: a bar a compiling package with its time, and a line a finished one."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows the packages of one build."""

    def __init__(self, console: Console, total: int) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._total, self._done = total, 0
        self._all = self._bars.add_task("packages", total=total, count=f"0/{total}")
        self._running: dict[str, TaskID] = {}
        self._began = time.perf_counter()

    def started(self, name: str) -> None:
        """A package is being compiled, or something else takes a while; may be said again."""
        if name not in self._running:
            self._running[name] = self._bars.add_task(f"  {name}", total=None, count="")

    def step(self, name: str, fraction: float, phase: str) -> None:
        """What was started is in a phase, with a fraction of the whole done."""
        percent = f"{fraction:.0%}"
        self._bars.update(
            self._running[name],
            description=f"  {name}: {phase}",
            total=1.0,
            completed=fraction,
            count=percent,
        )

    def ended(self, name: str, line: str) -> None:
        """What was started is done; ``line`` says how it went."""
        if name in self._running:
            self._bars.remove_task(self._running.pop(name))
        self._bars.console.print(f"  {name}: {line}")

    def finished(self, name: str, seconds: float) -> None:
        """A package is compiled and has run."""
        self.ended(name, f"compiled in {seconds:.1f} s")
        self._advance()

    def reused(self, name: str) -> None:
        """A package of an interrupted build is taken over."""
        self.ended(name, "taken over from the interrupted build")
        self._advance()

    def _advance(self) -> None:
        self._done += 1
        self._bars.update(self._all, advance=1, count=f"{self._done}/{self._total}")

    @property
    def seconds(self) -> float:
        """Seconds since the build began."""
        return time.perf_counter() - self._began

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
