"""What one AR step launches, and the kernels of each stage, from torch's profiler."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.stream import MAX_FILLING, PROMPT, WARM_STEPS, MemoryMeter, Streamer
from sdrt.runtime.measure import profiler
from sdrt.runtime.measure.timing import TRACKS
from sdrt.runtime.measure.trace import Recorder, Trace, range_table
from sdrt.runtime.session import Session

KERNEL_ROWS = 20
"""Kernels of a stage that a result keeps."""


def trace_steps(
    streamer: Streamer, source: ChunkSource, steps: int, path: Path | None = None
) -> dict[str, Any]:
    """Trace some steady AR steps; return launches and kernels per step and tables by stage.

    ``allocations`` are the caching allocator's requests over all of them; None on a CPU.
    A session gets ranges around its stages; a baseline, around its AR steps only.

    Args:
        path: keeps the Chrome trace.
    """
    streamer.prepare(PROMPT, seed=0)
    for warm in range(MAX_FILLING):
        streamer.submit(source.take(streamer.chunk_frames()))
        if streamer.receive().steady and warm > WARM_STEPS:
            break
    detach = None
    if isinstance(streamer, Session):
        detach = profiler.attach(streamer, torch.profiler.record_function)
    with tempfile.TemporaryDirectory() as folder:
        target = path or Path(folder) / "trace.json"
        recorder = Recorder(streamer.device)
        memory = MemoryMeter(streamer.device)
        with recorder:
            for _ in range(steps):
                frames = source.take(streamer.chunk_frames())
                if detach is None:
                    with torch.profiler.record_function(profiler.STEP):
                        streamer.submit(frames)
                else:
                    streamer.submit(frames)
                streamer.receive()
        allocations = memory.read().get("requests")
        recorder.write(target)
        if detach is not None:
            detach()
        return {"allocations": allocations} | _summary(Trace(target), steps)


def _summary(trace: Trace, steps: int) -> dict[str, Any]:
    stages = [stage for stage in TRACKS if trace.work_in(stage)]
    return {
        "launches_per_step": trace.launches_in(profiler.STEP) / steps,
        "kernels_per_step": len(trace.work_in(profiler.STEP)) / steps,
        "ranges": trace.stage_rows(),
        "kernels": {stage: trace.kernel_rows(stage)[:KERNEL_ROWS] for stage in stages},
    }


def kernel_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of :func:`trace_steps`: the ranges, then each stage's kernels."""
    yield range_table(found["ranges"])
    for stage, kernels in found["kernels"].items():
        view = Table(stage, title="per AR step", title_justify="left")
        for column in ("calls", "us", "share"):
            view.add_column(column, justify="right")
        for row in kernels:
            view.add_row(
                row["name"], f"{row['calls']:.0f}", f"{row['us']:.0f}", f"{row['share']:.1%}"
            )
        yield view
