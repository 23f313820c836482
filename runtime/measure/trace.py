"""A few AR steps through torch's profiler: a Chrome trace, and tables by stage and kernel."""

import bisect
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.console import RenderableType
from rich.table import Table

from sdrt.runtime.measure import profiler

if TYPE_CHECKING:
    from sdrt.runtime.session import Session

Event = dict[str, Any]
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what runs on the device."""
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
"""How the names of calls start that give the device work."""


@dataclass(frozen=True)
class Work:
    """One piece of work: a kernel or copy on the device; on a CPU an operator."""

    name: str
    start_us: float
    """When the host asked for it."""
    duration_us: float


class Recorder:
    """Records AR steps between ``start`` and ``stop`` and writes a Chrome trace."""

    def __init__(self, device: torch.device) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._device = device
        self._profile = torch.profiler.profile(activities=activities)

    def __enter__(self) -> Self:
        self._profile.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._profile.stop()

    def write(self, path: Path) -> None:
        """Write what was recorded; Perfetto and chrome://tracing read it."""
        self._profile.export_chrome_trace(str(path))


class StreamTrace:
    """Traces some AR steps of a running stream, once its window is full."""

    def __init__(self, session: "Session", path: Path, steps: int = 3) -> None:
        self._session, self.path = session, path
        self._recorder: Recorder | None = None
        self._left = steps
        self.written = False

    def __enter__(self) -> Self:
        self._detach = profiler.attach(self._session, torch.profiler.record_function)
        return self

    def step(self, steady: bool) -> None:
        """Note that an AR step was received; the first steady one starts the recording."""
        if not steady or self.written:
            return
        if self._recorder is None:
            self._recorder = Recorder(self._session.device)
            self._recorder.__enter__()
            return
        self._left -= 1
        if not self._left:
            self._finish()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._recorder is not None and not self.written:
            self._finish()
        self._detach()

    def report(self) -> list[RenderableType]:
        """Return what there is to show: where the time of the traced AR steps went."""
        if not self.written:
            return ["note: the stream ended before its window was full: no trace was written"]
        return [
            range_table(Trace(self.path).stage_rows()),
            f"wrote {self.path}: open it at ui.perfetto.dev",
        ]

    def _finish(self) -> None:
        assert self._recorder is not None
        self._recorder.__exit__(None, None, None)
        self._recorder.write(self.path)
        self.written = True


def tracing(session: "Session", path: Path | None) -> AbstractContextManager[StreamTrace | None]:
    """Return what traces a stream to ``path``; nothing does without one."""
    return nullcontext() if path is None else StreamTrace(session, path)


class Trace:
    """A Chrome trace, read back."""

    def __init__(self, path: Path) -> None:
        """Read a trace that :class:`Recorder` wrote."""
        events: list[Event] = json.loads(path.read_text())["traceEvents"]
        complete = [event for event in events if event.get("ph") == "X"]
        by_category: dict[str, list[Event]] = defaultdict(list)
        for event in complete:
            by_category[event.get("cat", "")].append(event)
        self.ranges = by_category["user_annotation"]
        calls = by_category["cuda_runtime"] + by_category["cuda_driver"]
        self.launches = [event for event in calls if event["name"].startswith(LAUNCHES)]
        on_device = [event for category in DEVICE for event in by_category[category]]
        asked = {event["args"].get("correlation"): event["ts"] for event in calls}
        self.work = [
            Work(event["name"], asked[event["args"]["correlation"]], event["dur"])
            for event in on_device
            if event["args"].get("correlation") in asked
        ]
        if not on_device:
            self.work = _outermost(by_category["cpu_op"])

    def steps(self) -> int:
        """Return the number of AR steps that were submitted."""
        return sum(event["name"] == profiler.STEP for event in self.ranges)

    def work_in(self, name: str) -> list[Work]:
        """Return the work that was asked for inside the ranges of a name."""
        spans = self._spans(name)
        return [work for work in self.work if spans.hold(work.start_us)]

    def launches_in(self, name: str) -> int:
        """Return the host's launches (graphs, kernels, copies) inside the ranges of a name."""
        spans = self._spans(name)
        return sum(spans.hold(event["ts"]) for event in self.launches)

    def stage_rows(self) -> list[dict[str, Any]]:
        """Return a row per range name, in the order of their first appearance.

        A row has ``range``, ``calls``, and per call ``host_us``, ``device_us``, ``launches`` and
        ``kernels``. Ranges nest, so rows do not add up.
        """
        rows = []
        for name in dict.fromkeys(e["name"] for e in sorted(self.ranges, key=lambda e: e["ts"])):
            ranges = [event for event in self.ranges if event["name"] == name]
            work, calls = self.work_in(name), len(ranges)
            rows.append(
                {
                    "range": name,
                    "calls": calls,
                    "host_us": sum(event["dur"] for event in ranges) / calls,
                    "device_us": sum(piece.duration_us for piece in work) / calls,
                    "launches": self.launches_in(name) / calls,
                    "kernels": len(work) / calls,
                }
            )
        return rows

    def kernel_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the kernels inside the ranges of a name, the longest in sum first.

        A row has ``name``, and per AR step ``calls`` and ``us``, and its ``share`` of the stage.
        """
        steps = max(1, self.steps())
        sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for work in self.work_in(name):
            sums[work.name][0] += 1
            sums[work.name][1] += work.duration_us
        total = sum(us for _, us in sums.values()) or 1.0
        rows = [
            {"name": kernel, "calls": calls / steps, "us": us / steps, "share": us / total}
            for kernel, (calls, us) in sums.items()
        ]
        return sorted(rows, key=lambda row: -row["us"])

    def _spans(self, name: str) -> "_Spans":
        return _Spans((e["ts"], e["ts"] + e["dur"]) for e in self.ranges if e["name"] == name)


def range_table(rows: Iterable[dict[str, Any]]) -> Table:
    """Return the rows of :meth:`Trace.stage_rows` for people."""
    table = Table("range", title="per call", title_justify="left")
    for column in ("calls", "host us", "device us", "launches", "kernels"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = [row[key] for key in ("host_us", "device_us", "launches", "kernels")]
        table.add_row(row["range"], str(row["calls"]), *(f"{value:.0f}" for value in figures))
    return table


class _Spans:
    """Stretches of time that do not overlap."""

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        self._spans = sorted(spans)
        self._starts = [start for start, _ in self._spans]

    def hold(self, moment: float) -> bool:
        index = bisect.bisect_right(self._starts, moment) - 1
        return index >= 0 and moment <= self._spans[index][1]


def _outermost(operators: Sequence[Event]) -> list[Work]:
    """Return the operators that no other operator of their thread encloses."""
    ends: dict[Any, float] = defaultdict(float)
    found = []
    for event in sorted(operators, key=lambda e: (e["ts"], -e["dur"])):
        if event["ts"] >= ends[event.get("tid")]:
            ends[event.get("tid")] = event["ts"] + event["dur"]
            found.append(Work(event["name"], event["ts"], event["dur"]))
    return found
