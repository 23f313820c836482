"""Times of the tracks of one AR step: CUDA events on a GPU, the host clock on a CPU."""

import time
from typing import Protocol

import torch

TRACKS = ("encode", "diffuse", "decode", "finalize")
"""The tracks of an AR step, in the order in which they begin."""
DELIVERY = TRACKS[:3]
"""Those that a chunk's frames wait for."""


class Clock(Protocol):
    """Times the tracks of one AR step, on the stream of each; reused for later steps."""

    def start(self) -> None:
        """Forget the AR step before."""
        ...

    def begin(self, track: str) -> None:
        """Begin a track; they come in the order of ``TRACKS``, and a step may lack some."""
        ...

    def end(self, track: str) -> None:
        """End a track."""
        ...

    def wait(self) -> None:
        """Block the host until the last track that frames wait for has ended."""
        ...

    def read(self) -> dict[str, float]:
        """Return the times of ``DELIVERY``, ``<track>_ms``, and ``total_ms`` from begin to end.

        It waits for the last of them. Where tracks of several chunks run beside each other, each
        takes longer than it would alone.
        """
        ...

    def finalize_ms(self) -> float:
        """Return the time of the track after the frames' delivery; waits for it."""
        ...


class EventClock:
    """CUDA events around the tracks: no synchronisation until they are read."""

    def __init__(self) -> None:
        self._begins, self._ends = (
            {name: torch.cuda.Event(enable_timing=True) for name in TRACKS} for _ in range(2)
        )
        self._ran: list[str] = []

    def start(self) -> None:
        self._ran = []

    def begin(self, track: str) -> None:
        self._begins[track].record()

    def end(self, track: str) -> None:
        self._ends[track].record()
        self._ran.append(track)

    def wait(self) -> None:
        self._ends[self._delivery()[-1]].synchronize()

    def read(self) -> dict[str, float]:
        self.wait()
        ran = self._delivery()
        times = {f"{name}_ms": self._ms(name) if name in ran else 0.0 for name in DELIVERY}
        return times | {"total_ms": self._begins[ran[0]].elapsed_time(self._ends[ran[-1]])}

    def finalize_ms(self) -> float:
        last = TRACKS[-1]
        if last not in self._ran:
            return 0.0
        self._ends[last].synchronize()
        return self._ms(last)

    def _delivery(self) -> list[str]:
        return [name for name in self._ran if name in DELIVERY]

    def _ms(self, track: str) -> float:
        return self._begins[track].elapsed_time(self._ends[track])


class HostClock:
    """The host's clock: on a CPU every track has finished when its call returns."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._begin = 0.0

    def start(self) -> None:
        self._times = {}

    def begin(self, track: str) -> None:
        self._begin = time.perf_counter()

    def end(self, track: str) -> None:
        self._times[track] = (time.perf_counter() - self._begin) * 1e3

    def wait(self) -> None:
        """Nothing to wait for."""

    def read(self) -> dict[str, float]:
        times = {f"{name}_ms": self._times.get(name, 0.0) for name in DELIVERY}
        return times | {"total_ms": sum(times.values())}

    def finalize_ms(self) -> float:
        return self._times.get(TRACKS[-1], 0.0)


def make_clock(device: torch.device) -> Clock:
    """Return the clock for a device."""
    return EventClock() if device.type == "cuda" else HostClock()
