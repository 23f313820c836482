"""Records, pacing and players, on a stream whose times are known."""

import time

import numpy as np
import pytest
import torch

from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.paced import Playout, stalls
from sdrt.bench.measure.stream import Length, Record, rate, record_stream, summarise
from sdrt.runtime.chunk import Chunk

STAGES = {"encode_ms": 1.0, "diffuse_ms": 2.0, "decode_ms": 3.0, "finalize_ms": 0.0}


class FakeStream:
    """Makes 4 frames an AR step of 2 ms; its window is full after 3."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.submitted = self.received = self.most_in_flight = 0

    def prepare(self, prompt: str, seed: int = 0) -> None:
        self.submitted = self.received = 0

    def chunk_frames(self) -> int:
        return 4 if self.submitted else 5

    def submit(self, frames: np.ndarray | None = None) -> None:
        assert frames is not None and frames.shape == (self.chunk_frames(), 16, 16, 3)
        self.submitted += 1
        self.most_in_flight = max(self.most_in_flight, self.submitted - self.received)

    def receive(self) -> Chunk:
        time.sleep(0.002)
        index, self.received = self.received, self.received + 1
        frames = np.zeros((4, 16, 16, 3), np.uint8)
        return Chunk(index, frames, STAGES | {"total_ms": 6.0}, 2.0, index >= 3)


@pytest.mark.parametrize("ahead", [0, 1])
def test_phases_and_order_of_a_stream(ahead) -> None:
    stream, steady_at = FakeStream(), []
    source, length = ChunkSource(16, 16), Length(0.01, 5, 5)
    records = record_stream(
        stream, source, length, ahead, lambda: steady_at.append(stream.received)
    )
    assert steady_at == [5]
    assert [record.phase for record in records] == ["filling"] * 3 + ["warm"] * 2 + ["steady"] * 5
    assert [record.index for record in records] == list(range(10))
    assert stream.submitted == stream.received == 10 + ahead
    assert stream.most_in_flight == 1 + ahead
    assert all(a.received_ms < b.received_ms for a, b in zip(records, records[1:], strict=False))


def test_the_length_follows_the_speed() -> None:
    length = Length(seconds=10, least=20, most=200)
    assert [length.steps(step_s) for step_s in (0.001, 0.1, 5.0)] == [200, 100, 20]


def _records(count: int, interval_ms: float, frames: int = 4) -> list[Record]:
    phases = ["filling"] * 2 + ["warm"] * 2 + ["steady"] * count
    return [
        Record(i, phase, frames, (i + 1) * interval_ms, interval_ms, 1.0, STAGES)
        for i, phase in enumerate(phases)
    ]


def test_summary_counts_steady_steps_only() -> None:
    summary = summarise(_records(10, 100.0))
    assert summary["fps"] == pytest.approx(40.0)
    assert (summary["filling_steps"], summary["steady_steps"]) == (2, 10)
    assert summary["interval_ms"]["p50"] == pytest.approx(100.0)
    assert summary["interval_ms"]["jitter"] == pytest.approx(0.0, abs=1e-9)
    assert summary["stages_ms"]["decode_ms"]["p99"] == 3.0


def test_rate_leaves_the_first_steps_time_out() -> None:
    assert rate(_records(0, 100.0)[:2]) == pytest.approx(40.0)
    assert rate(_records(0, 100.0)[:1]) is None


def test_playout_of_a_machine_that_keeps_up() -> None:
    """16 FPS, chunks of 4, each ready 50 ms after its last frame: its first waits 3 frames more."""
    playout = Playout(16)
    for _ in range(5):
        available = playout.submitted(4)
        playout.deadline(4)
        playout.received(4, available + 0.05)
    summary = playout.summary(0, 0)
    assert summary["missed_deadlines"] == 0
    assert summary["glass_to_glass_ms"]["max"] == pytest.approx(3 * 62.5 + 50)
    assert min(playout.latencies_ms) == pytest.approx(50)


def test_playout_of_a_machine_that_falls_behind() -> None:
    """A chunk every 300 ms where 250 are allowed: each is 50 ms later than the one before."""
    playout = Playout(16)
    for step in range(8):
        playout.submitted(4)
        playout.deadline(4)
        playout.received(4, 3 / 16 + 0.3 * (step + 1))
    assert playout.summary(0, 0)["missed_deadlines"] == 8
    assert playout.late_by_ms == pytest.approx([50.0 * (step + 1) for step in range(8)])
    assert playout.summary(2, 8)["chunks"] == 6


def test_player_of_a_stream_that_is_fast_enough() -> None:
    found = stalls(_records(9, 100.0), rate=30)
    assert (found["missed_deadlines"], found["stalled_ms"]) == (0, 0.0)
    assert found["real_time_factor"] == pytest.approx((4 / 30) / 0.1)


def test_player_of_a_stream_that_is_too_slow() -> None:
    found = stalls(_records(9, 200.0), rate=40)
    assert found["missed_deadlines"] == 8
    assert found["stalled_ms"] == pytest.approx(8 * 100.0)
    assert found["real_time_factor"] == pytest.approx(0.5)
