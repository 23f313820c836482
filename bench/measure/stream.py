"""Speed of a stream: a record of every AR step while the window fills and after it is full."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.statistics import distribution
from sdrt.runtime.chunk import Chunk

PROMPT = "neon discs"
WARM_STEPS = 2
"""Steady AR steps that are not counted: the first replays after the window filled."""
MAX_FILLING = 400
"""AR steps after which a window that is still not full is an error."""


class Streamer(Protocol):
    """What is measured: a session over packages, or over one of the baselines."""

    device: torch.device

    def prepare(self, prompt: str, seed: int = 0) -> None: ...
    def chunk_frames(self) -> int: ...
    def submit(self, frames: np.ndarray | None = None) -> None: ...
    def receive(self) -> Chunk: ...


@dataclass(frozen=True)
class Record:
    """One AR step."""

    index: int
    phase: str
    """``filling`` until the window is full, ``warm`` for the first steps then, ``steady``."""
    frames: int
    received_ms: float
    """From the stream's first submit to the frames being readable."""
    latency_ms: float
    """From the step's own submit to the frames being readable."""
    submit_ms: float
    """Time that the host spent in ``submit``."""
    stages_ms: dict[str, float]
    """Device time of each stage, from events (on a CPU: host time)."""


@dataclass(frozen=True)
class Length:
    """How long to measure."""

    seconds: float
    """Steady AR steps are measured for about this long,"""
    least: int
    """for so many at least,"""
    most: int
    """and so many at most."""

    def steps(self, step_s: float) -> int:
        """Return the number of AR steps that take ``step_s`` each."""
        return max(self.least, min(self.most, round(self.seconds / max(step_s, 1e-6))))


def record_stream(
    streamer: Streamer,
    source: ChunkSource,
    length: Length,
    ahead: int,
    when_steady: Callable[[], object] = lambda: None,
) -> list[Record]:
    """Stream until enough steady AR steps are measured; return a record of every step.

    Args:
        ahead: AR steps that are submitted before the one awaited; ``sdrun`` has 1 on a GPU.
        when_steady: called once, before the first steady AR step is awaited.
    Raises:
        RuntimeError: the window does not fill.
    """
    streamer.prepare(PROMPT, seed=0)
    records: list[Record] = []
    pending: deque[tuple[float, float]] = deque()
    seen = {"filling": 0, "warm": 0, "steady": 0}
    wanted = length.least
    started = None
    submitted = 0
    while seen["steady"] < wanted:
        if submitted - len(records) <= ahead:
            frames = source.take(streamer.chunk_frames())
            begin = time.perf_counter()
            started = begin if started is None else started
            streamer.submit(frames)
            pending.append((begin, time.perf_counter()))
            submitted += 1
            if submitted - len(records) <= ahead:
                continue
        record = _receive(streamer, pending.popleft(), started, seen)
        records.append(record)
        seen[record.phase] += 1
        if seen["filling"] > MAX_FILLING:
            raise RuntimeError(f"the window is not full after {MAX_FILLING} AR steps")
        if seen["warm"] == WARM_STEPS and not seen["steady"]:
            when_steady()
            wanted = length.steps((records[-1].received_ms - records[-2].received_ms) / 1e3)
    while pending:
        _receive(streamer, pending.popleft(), started, seen)
    return records


def _receive(
    streamer: Streamer, times: tuple[float, float], started: float | None, seen: dict[str, int]
) -> Record:
    chunk = streamer.receive()
    now = time.perf_counter()
    assert started is not None
    phase = "filling"
    if chunk.steady:
        phase = "steady" if seen["warm"] >= WARM_STEPS else "warm"
    return Record(
        index=chunk.index,
        phase=phase,
        frames=len(chunk.frames),
        received_ms=(now - started) * 1e3,
        latency_ms=(now - times[0]) * 1e3,
        submit_ms=(times[1] - times[0]) * 1e3,
        stages_ms=chunk.stages_ms,
    )


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Return rates in frames per second and times in ms; filling and steady state apart."""
    filling = [record for record in records if record.phase == "filling"]
    first_steady = next(i for i, record in enumerate(records) if record.phase == "steady")
    steady = records[first_steady:]
    before_ms = records[first_steady - 1].received_ms
    intervals = np.diff([before_ms, *(record.received_ms for record in steady)])
    elapsed_ms = steady[-1].received_ms - before_ms
    return {
        "fps": sum(record.frames for record in steady) / elapsed_ms * 1e3,
        "filling_fps": rate(filling),
        "filling_steps": len(filling),
        "steady_steps": len(steady),
        "first_chunk_ms": records[0].received_ms,
        "interval_ms": distribution(intervals.tolist()),
        "latency_ms": distribution([record.latency_ms for record in steady]),
        "host_ms": distribution([record.submit_ms for record in steady]),
        "stages_ms": {
            stage: distribution([record.stages_ms[stage] for record in steady])
            for stage in steady[0].stages_ms
        },
    }


def rate(records: Sequence[Record]) -> float | None:
    """Return the frames per second of consecutive AR steps, the first one's time left out."""
    if len(records) < 2:
        return None
    elapsed_ms = records[-1].received_ms - records[0].received_ms
    return sum(record.frames for record in records[1:]) / elapsed_ms * 1e3


def as_dicts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return records as plain values; times with microseconds."""
    return [_rounded(asdict(record)) for record in records]


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value)
        if isinstance(value, Mapping)
        else round(value, 4)
        if isinstance(value, float)
        else value
        for key, value in values.items()
    }


class MemoryMeter:
    """Device memory of one measurement: its peak, and what is held at its end, in GiB."""

    def __init__(self, device: torch.device) -> None:
        """Start counting the peak from now."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = self._counters()

    def read(self) -> dict[str, float]:
        """Return ``peak_gib``, ``steady_gib`` and the allocator's requests; nothing on a CPU."""
        if self._device.type != "cuda":
            return {}
        requests, calls = self._counters()
        return {
            "peak_gib": torch.cuda.max_memory_allocated(self._device) / 2**30,
            "steady_gib": torch.cuda.memory_allocated(self._device) / 2**30,
            "reserved_gib": torch.cuda.memory_reserved(self._device) / 2**30,
            "requests": requests - self._before[0],
            "device_allocations": calls - self._before[1],
        }

    def _counters(self) -> tuple[int, int]:
        counts = allocator_counts(self._device)
        return counts["requests"], counts["device_allocations"]


def allocator_counts(device: torch.device) -> dict[str, int]:
    """Return the caching allocator's counters since the process began, and bytes held now."""
    stats = torch.cuda.memory_stats(device)
    return {
        "requests": stats["allocation.all.allocated"],
        "device_allocations": stats["num_device_alloc"],
        "held_bytes": stats["allocated_bytes.all.current"],
        "reserved_bytes": stats["reserved_bytes.all.current"],
    }
