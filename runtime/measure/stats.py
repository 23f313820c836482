"""Timing of a stream: a record per AR step, a summary, a live line and a JSON report."""

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:  # a session needs torch, its numbers do not
    from sdrt.runtime.chunk import Chunk

STAGES = ("encode_ms", "diffuse_ms", "decode_ms", "finalize_ms", "total_ms")
PERCENTILES = (50, 95, 99)
WARM_CHUNKS = 2
"""AR steps left out of the steady numbers when the stream ends before its window is full."""
MIN_STEADY_CHUNKS = 3
"""Fewer AR steps than this are no basis for steady numbers."""


@dataclass(frozen=True)
class ChunkRecord:
    """One AR step."""

    index: int
    phase: str
    """``filling`` until the window is full, then ``steady``; ``drain`` after the input's end."""
    frames: int
    received_ms: float
    """Host time from the first submit to the chunk's receipt."""
    latency_ms: float
    """Host time from the chunk's own submit to its receipt, the wait behind others included."""
    stages_ms: dict[str, float]
    """Device time of each stage, by the names in ``STAGES``."""


class StreamStats:
    """Collects the records of one stream.

    Args:
        clock: seconds, as ``time.perf_counter``.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.records: list[ChunkRecord] = []
        self._clock = clock
        self._first_submit: float | None = None
        self._first_frame_ms: float | None = None
        self._cold_start_ms: float | None = None

    def submitted(self) -> None:
        """Note the time of the stream's first submit; later calls change nothing."""
        if self._first_submit is None:
            self._first_submit = self._clock()

    def received(self, chunk: "Chunk", draining: bool = False) -> None:
        """Record a chunk at the time of its receipt."""
        if self._first_submit is None:
            raise RuntimeError("received() before submitted()")
        now_ms = (self._clock() - self._first_submit) * 1e3
        if self._first_frame_ms is None and len(chunk.frames):
            self._first_frame_ms, self._cold_start_ms = now_ms, process_age_ms()
        self.records.append(
            ChunkRecord(
                index=chunk.index,
                phase="drain" if draining else "steady" if chunk.steady else "filling",
                frames=len(chunk.frames),
                received_ms=now_ms,
                latency_ms=chunk.latency_ms,
                stages_ms={stage: chunk.stages_ms.get(stage, 0.0) for stage in STAGES},
            )
        )

    def recent_fps(self, chunks: int = 16) -> float:
        """Return frames per second over the last AR steps (0 before there are two)."""
        tail = self.records[-chunks - 1 :]
        return _rate(tail[1:], tail[0].received_ms) if len(tail) > 1 else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the stream's numbers: latencies in ms, rates in frames per second.

        Rates, percentiles and stage times are taken over the AR steps that ``steady_basis``
        names; those of the drain never count. Without any record all of them are absent.
        """
        streamed = [record for record in self.records if record.phase != "drain"]
        result: dict[str, Any] = {
            "chunks": len(self.records),
            "frames": sum(record.frames for record in self.records),
            "first_frame_latency_ms": self._first_frame_ms,
            "process_start_to_first_frame_ms": self._cold_start_ms,
        }
        if not streamed:
            return result
        start, basis = _steady_start(streamed)
        steady = streamed[start:]
        before_ms = streamed[start - 1].received_ms if start else 0.0
        result |= {"steady_fps": _rate(steady, before_ms), "steady_basis": basis}
        latencies = percentiles([record.latency_ms for record in steady])
        result |= {f"chunk_latency_{name}_ms": value for name, value in latencies.items()}
        for stage in STAGES:
            result[stage] = percentiles([record.stages_ms[stage] for record in steady])["p50"]
        return result

    def write_json(
        self, path: Path, header: Mapping[str, Any], memory: Mapping[str, float]
    ) -> None:
        """Write header, summary, memory and all records as one JSON object."""
        report = {
            **header,
            "summary": self.summary() | dict(memory),
            "records": [asdict(record) for record in self.records],
        }
        path.write_text(json.dumps(report, indent=1) + "\n")

    def table(self, memory: Mapping[str, float]) -> Table:
        """Return the summary as a table for people."""
        numbers = self.summary()
        table = Table("", "", show_header=False, title="sdrun", title_justify="left")
        table.columns[1].justify = "right"

        def add(label: str, key: str, unit: str, digits: int = 1) -> None:
            value = numbers.get(key)
            if value is not None:
                table.add_row(label, f"{value:.{digits}f} {unit}")

        table.add_row("frames made / AR steps", f"{numbers['frames']} / {numbers['chunks']}")
        add("first frame, from the first submit", "first_frame_latency_ms", "ms")
        add("first frame, from process start", "process_start_to_first_frame_ms", "ms")
        add("steady rate", "steady_fps", "FPS")
        if "steady_basis" in numbers:
            table.add_row("  taken over", numbers["steady_basis"])
        for percent in PERCENTILES:
            add(f"chunk latency p{percent}", f"chunk_latency_p{percent}_ms", "ms")
        for stage in STAGES:
            add(f"{stage.removesuffix('_ms')} p50", stage, "ms", 2)
        for name, gib in memory.items():
            table.add_row(name.removesuffix("_gib").replace("_", " "), f"{gib:.2f} GiB")
        return table


class LiveLine:
    """One line at the terminal's bottom with rate and stage times; silent when not a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, transient=True, refresh_per_second=8)
        self._enabled = console.is_terminal

    def update(self, stats: StreamStats) -> None:
        """Show the latest AR step."""
        if not self._enabled or not stats.records:
            return
        last = stats.records[-1]
        frames = sum(record.frames for record in stats.records)
        stages = "  ".join(
            f"{stage.removesuffix('_ms')} {milliseconds:.1f}"
            for stage, milliseconds in last.stages_ms.items()
        )
        self._live.update(
            f"AR step {last.index}  {frames} frames  {stats.recent_fps():.1f} FPS  {stages} ms"
        )

    def __enter__(self) -> "LiveLine":
        if self._enabled:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._live.stop()


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 of at least one value, interpolated linearly."""
    found = np.percentile(np.asarray(values, dtype=np.float64), PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def process_age_ms() -> float | None:
    """Return the time since this process started, imports included; None where unknown."""
    if not sys.platform.startswith("linux"):
        return None
    # The command's name, in parentheses, may hold spaces: count fields after it.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) * 1e3


def versions() -> dict[str, str]:
    """Return the versions that a measurement depends on; ``source`` for a bare checkout."""
    found = {"python": platform.python_version()}
    for package in ("sdrt", "torch", "numpy", "av"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "source"
    return found


def _rate(records: Sequence[ChunkRecord], since_ms: float) -> float:
    elapsed_ms = records[-1].received_ms - since_ms
    return sum(record.frames for record in records) / elapsed_ms * 1e3 if elapsed_ms > 0 else 0.0


def _steady_start(records: Sequence[ChunkRecord]) -> tuple[int, str]:
    """Return the first AR step that counts as steady, and in words why."""
    filling = sum(record.phase == "filling" for record in records)
    if len(records) >= filling + MIN_STEADY_CHUNKS:
        return filling, f"{len(records) - filling} AR steps after the window was full"
    if len(records) >= WARM_CHUNKS + MIN_STEADY_CHUNKS:
        count = len(records) - WARM_CHUNKS
        return WARM_CHUNKS, f"{count} AR steps after {WARM_CHUNKS} warm ones, window filling"
    return 0, f"all {len(records)} AR steps, too few to leave any out"
