"""Speed of an engine: steady FPS and chunk latency, all stages included, device memory."""

import time
from collections import deque
from typing import Any

import numpy as np
import torch

from sdrt.bench.frames import chunks_for
from sdrt.runtime.session import Chunk, Session

PROMPT = "neon discs"
INPUT_CHUNKS = 8
"""Distinct input chunks that are repeated, made before the clock runs."""


def measure_speed(session: Session, chunks: int) -> dict[str, Any]:
    """Stream ``chunks`` AR steps in steady state and return FPS, latencies, times and memory.

    One chunk is always submitted ahead, as ``sdrun`` does. Before the clock starts, the window
    is filled and further steps are run: nothing of the warm-up is counted.
    """
    session.prepare(PROMPT, seed=0)
    source = chunks_for(session)
    steady = 0
    while not session.flow.is_steady(steady):
        steady += 1
    for _ in range(steady + 4):
        session.step(next(source))
    inputs = [next(source) for _ in range(INPUT_CHUNKS)]
    before = _allocations(session)
    _reset_peak(session)
    finished: deque[tuple[Chunk, float]] = deque()
    started = time.perf_counter()
    submit_s = 0.0
    for index in range(chunks):
        begin = time.perf_counter()
        session.submit(inputs[index % INPUT_CHUNKS])
        submit_s += time.perf_counter() - begin
        if index:
            finished.append((session.receive(), time.perf_counter()))
    finished.append((session.receive(), time.perf_counter()))
    elapsed = finished[-1][1] - started
    frames = sum(len(chunk.frames) for chunk, _ in finished)
    arrivals = np.diff([started, *(moment for _, moment in finished)]) * 1e3
    stages = {
        name: float(np.median([chunk.stages_ms[name] for chunk, _ in finished]))
        for name in finished[0][0].stages_ms
    }
    total = np.array([chunk.stages_ms["total_ms"] for chunk, _ in finished])
    return {
        "fps": frames / elapsed,
        "chunks": chunks,
        "frames_per_chunk": frames / chunks,
        "interval_ms": _percentiles(arrivals[1:]),
        "device_ms": _percentiles(total),
        "stages_ms": stages,
        "host_submit_ms": submit_s / chunks * 1e3,
        "allocations": {
            name: value - before[name] for name, value in _allocations(session).items()
        },
        "memory": session.memory_gib(),
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 95, 99)} | {
        "max": float(values.max())
    }


def _allocations(session: Session) -> dict[str, int]:
    """Return the counters of the caching allocator; none on a CPU."""
    if session.device.type != "cuda":
        return {}
    stats = torch.cuda.memory_stats(session.device)
    return {
        "requests": stats["allocation.all.allocated"],
        "device_allocations": stats["num_device_alloc"],
    }


def _reset_peak(session: Session) -> None:
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(session.device)
