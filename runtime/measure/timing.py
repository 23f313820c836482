"""Stage times of one AR step: CUDA events on a GPU, the host clock on a CPU."""

import time
from typing import Protocol

import torch

MARKS = ("encode_ms", "diffuse_ms", "decode_ms", "finalize_ms")
DELIVERY = MARKS[:3]
"""The stages that a chunk's frames wait for."""


class Clock(Protocol):
    """Times the stages of one AR step, on the stream of each; reused for later steps."""

    def begin(self, name: str) -> None:
        """Begin the stage ``name``; the stages come in the order of ``MARKS``."""
        ...

    def end(self, name: str) -> None:
        """End the stage ``name``."""
        ...

    def wait(self, name: str) -> None:
        """Block the host until the device has ended a stage."""
        ...

    def read(self) -> dict[str, float]:
        """Return the times of ``DELIVERY`` and ``total_ms``, from the first begin to the last end.

        It waits for the last of them. Where stages of several chunks run beside each other, each
        takes longer than it would alone.
        """
        ...

    def finalize_ms(self) -> float:
        """Return the time of the stage after the frames' delivery; waits for it."""
        ...


class EventClock:
    """CUDA events between the stages' graphs: no synchronisation until they are read."""

    def __init__(self) -> None:
        self._begins, self._ends = (
            {name: torch.cuda.Event(enable_timing=True) for name in MARKS} for _ in range(2)
        )

    def begin(self, name: str) -> None:
        self._begins[name].record()

    def end(self, name: str) -> None:
        self._ends[name].record()

    def wait(self, name: str) -> None:
        self._ends[name].synchronize()

    def read(self) -> dict[str, float]:
        last = self._ends[DELIVERY[-1]]
        last.synchronize()
        times = {name: self._begins[name].elapsed_time(self._ends[name]) for name in DELIVERY}
        return times | {"total_ms": self._begins[DELIVERY[0]].elapsed_time(last)}

    def finalize_ms(self) -> float:
        end = self._ends[MARKS[-1]]
        end.synchronize()
        return self._begins[MARKS[-1]].elapsed_time(end)


class HostClock:
    """The host's clock: on a CPU every stage has finished when its call returns."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._begin = 0.0

    def begin(self, name: str) -> None:
        self._begin = time.perf_counter()

    def end(self, name: str) -> None:
        self._times[name] = (time.perf_counter() - self._begin) * 1e3

    def wait(self, name: str) -> None:
        """Nothing to wait for."""

    def read(self) -> dict[str, float]:
        times = {name: self._times[name] for name in DELIVERY}
        return times | {"total_ms": sum(times.values())}

    def finalize_ms(self) -> float:
        return self._times[MARKS[-1]]


def make_clock(device: torch.device) -> Clock:
    """Return the clock for a device."""
    return EventClock() if device.type == "cuda" else HostClock()
