"""Stage times of one AR step: CUDA events on a GPU, the host clock on a CPU."""

import time
from typing import Protocol

import torch

MARKS = ("encode_ms", "diffuse_ms", "decode_ms", "finalize_ms")


class Clock(Protocol):
    """Times the stages of one AR step; reused for later steps."""

    def start(self) -> None: ...
    def mark(self, name: str) -> None:
        """End the stage ``name``; the marks come in the order of ``MARKS``."""
        ...

    def wait(self, name: str) -> None:
        """Block the host until the device has passed a mark."""
        ...

    def read(self) -> dict[str, float]:
        """Return the stages' times and ``total_ms``; waits for the last mark."""
        ...


class EventClock:
    """CUDA events between the stages' graphs: no synchronisation until they are read."""

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)
        self._marks = {name: torch.cuda.Event(enable_timing=True) for name in MARKS}

    def start(self) -> None:
        self._start.record()

    def mark(self, name: str) -> None:
        self._marks[name].record()

    def wait(self, name: str) -> None:
        self._marks[name].synchronize()

    def read(self) -> dict[str, float]:
        self._marks[MARKS[-1]].synchronize()
        times, previous = {}, self._start
        for name, event in self._marks.items():
            times[name] = previous.elapsed_time(event)
            previous = event
        return times | {"total_ms": self._start.elapsed_time(previous)}


class HostClock:
    """The host's clock: on a CPU every stage has finished when its call returns."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self._times[name] = (now - self._last) * 1e3
        self._last = now

    def wait(self, name: str) -> None:
        """Nothing to wait for."""

    def read(self) -> dict[str, float]:
        return self._times | {"total_ms": sum(self._times.values())}


def make_clock(device: torch.device) -> Clock:
    """Return the clock for a device."""
    return EventClock() if device.type == "cuda" else HostClock()
