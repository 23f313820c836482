"""What named ranges cost while they are attached; a session without them runs unchanged code."""

import time
from typing import Any

import torch

from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.statistics import median_ratio
from sdrt.bench.measure.stream import PROMPT
from sdrt.runtime.measure import profiler
from sdrt.runtime.session import Session

ROUNDS = 4
"""Blocks without and with ranges that take turns, so that drift of the clocks hits both."""


def measure_overhead(session: Session, source: ChunkSource, steps: int) -> dict[str, Any]:
    """Return the median AR step in ms without and with ranges, and their ratio's interval.

    Args:
        steps: AR steps of one block.
    """
    emitter = profiler.nvtx_emitter() or torch.profiler.record_function
    session.prepare(PROMPT, seed=0)
    while not _step(session, source)[1]:
        continue
    times: dict[str, list[float]] = {"off_ms": [], "on_ms": []}
    for _ in range(ROUNDS):
        times["off_ms"] += [_step(session, source)[0] for _ in range(steps)]
        detach = profiler.attach(session, emitter)
        times["on_ms"] += [_step(session, source)[0] for _ in range(steps)]
        detach()
    ratio = median_ratio(times["off_ms"], times["on_ms"])
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()} | {
        "ratio": [ratio.low, ratio.value, ratio.high]
    }


def _step(session: Session, source: ChunkSource) -> tuple[float, bool]:
    frames = source.take(session.chunk_frames())
    begin = time.perf_counter()
    session.submit(frames)
    steady = session.receive().steady
    return (time.perf_counter() - begin) * 1e3, steady
