"""A live source: frames that come at a fixed rate, and what arrives too late."""

import time
from collections.abc import Sequence
from typing import Any

from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.statistics import distribution
from sdrt.bench.measure.stream import PROMPT, Record
from sdrt.runtime.session import Session

RATES = (16, 24, 30)
"""Frames per second of the sources."""
SPIN_S = 0.001
"""The last stretch before a frame is waited for awake: sleeping is not precise enough."""


class Playout:
    """Glass-to-glass bookkeeping: N frames in give N frames out, in order.

    Frame j is captured at ``j / rate``; its latency ends when its output is readable. A chunk
    misses its deadline when it is received later than the next chunk's last frame is captured:
    a machine that keeps up misses none.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.captured = self.shown = 0
        self.latencies_ms: list[float] = []
        self._due: list[float] = []
        self.late_by_ms: list[float] = []

    def submitted(self, frames: int) -> float:
        """Note a chunk's frames; return when the last of them is captured, in seconds."""
        self.captured += frames
        return (self.captured - 1) / self.rate

    def deadline(self, next_frames: int) -> None:
        """Note that the chunk just submitted is due when ``next_frames`` more are captured."""
        self._due.append((self.captured - 1 + next_frames) / self.rate)

    def received(self, frames: int, now: float) -> None:
        """Note a chunk's output frames, readable at ``now`` seconds."""
        for frame in range(self.shown, self.shown + frames):
            self.latencies_ms.append((now - frame / self.rate) * 1e3)
        self.shown += frames
        self.late_by_ms.append((now - self._due[len(self.late_by_ms)]) * 1e3)

    def summary(self, skip_chunks: int, skip_frames: int) -> dict[str, Any]:
        """Return latency and deadlines, the given chunks and frames at the start left out."""
        late = self.late_by_ms[skip_chunks:]
        missed = [value for value in late if value > 0]
        return {
            "rate": self.rate,
            "chunks": len(late),
            "glass_to_glass_ms": distribution(self.latencies_ms[skip_frames:]),
            "missed_deadlines": len(missed),
            "worst_late_ms": max(missed, default=0.0),
        }


def run_paced(session: Session, source: ChunkSource, rate: float, steps: int) -> dict[str, Any]:
    """Stream video to video from a source of ``rate`` FPS for ``steps`` steady AR steps.

    A chunk is submitted when its last frame is there, not sooner. The next one is not awaited
    before the last is received unless it is there already: a slow machine falls behind, and its
    latency shows it.
    """
    session.prepare(PROMPT, seed=0)
    for count in (session.chunk_frames(), 4 * chunk_latent_frames(session)):
        source.prepare(count)
    playout, start = Playout(rate), time.perf_counter()
    filling, filled_frames, steady, in_flight = 0, 0, 0, 0

    def receive() -> None:
        nonlocal filling, filled_frames, steady, in_flight
        chunk = session.receive()
        playout.received(len(chunk.frames), time.perf_counter() - start)
        in_flight -= 1
        if chunk.steady:
            steady += 1
        else:
            filling += 1
            filled_frames = playout.shown

    while steady < steps:
        count = session.chunk_frames()
        available = start + playout.submitted(count)
        while in_flight == 2 or (in_flight and time.perf_counter() < available):
            receive()
        _wait_until(available)
        session.submit(source.take(count))
        in_flight += 1
        playout.deadline(session.chunk_frames())
    while in_flight:
        receive()
    return playout.summary(filling, filled_frames)


def chunk_latent_frames(session: Session) -> int:
    """Return the latent frames of an AR step; each is four frames."""
    return session.stream.latent_frames


def _wait_until(moment: float) -> None:
    while (left := moment - time.perf_counter()) > 0:
        if left > SPIN_S:
            time.sleep(left - SPIN_S)


def stalls(records: Sequence[Record], rate: float) -> dict[str, Any]:
    """Return how a player of ``rate`` FPS would fare with a stream's steady AR steps.

    The player starts when the first of them is received and stalls whenever it runs out of
    frames. Text to video has no source; this is its deadline.
    """
    steady = [record for record in records if record.phase == "steady"]
    clock, stalled, count = steady[0].received_ms, 0.0, 0
    for before, record in zip(steady, steady[1:], strict=False):
        clock += before.frames / rate * 1e3
        if record.received_ms > clock:
            stalled += record.received_ms - clock
            clock = record.received_ms
            count += 1
    played_ms = sum(record.frames for record in steady[:-1]) / rate * 1e3
    elapsed_ms = steady[-1].received_ms - steady[0].received_ms
    return {
        "rate": rate,
        "chunks": len(steady) - 1,
        "missed_deadlines": count,
        "stalled_ms": stalled,
        "real_time_factor": played_ms / elapsed_ms if elapsed_ms else 0.0,
    }
