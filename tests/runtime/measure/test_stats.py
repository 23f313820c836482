"""Timing records and their summary; the references are numpy and times made up here."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sdrt.runtime.chunk import Chunk
from sdrt.runtime.measure.stats import (
    STAGES,
    LiveLine,
    StreamStats,
    percentiles,
    process_age_ms,
    versions,
)


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def run(chunks: list[tuple[float, Chunk]], drained: int = 0) -> StreamStats:
    """Record chunks, each after a pause in seconds; the last ``drained`` of them from the drain."""
    clock = FakeClock()
    stats = StreamStats(clock)
    for number, (pause, chunk) in enumerate(chunks):
        stats.submitted()
        clock.seconds += pause
        stats.received(chunk, draining=number >= len(chunks) - drained)
    return stats


def chunk(
    index: int,
    frames: int = 4,
    latency_ms: float = 10.0,
    steady: bool = False,
    stage_ms: float = 1.0,
) -> Chunk:
    pictures = np.zeros((frames, 2, 2, 3), np.uint8)
    return Chunk(index, pictures, {stage: stage_ms for stage in STAGES}, latency_ms, steady)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=203).tolist()
    assert percentiles(values) == {
        f"p{q}": pytest.approx(float(np.quantile(values, q / 100)), rel=1e-12) for q in (50, 95, 99)
    }
    assert percentiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0}


def test_steady_numbers_leave_filling_and_drain_out() -> None:
    latencies = [500.0, 400.0, 300.0, 20.0, 22.0, 24.0, 30.0, 900.0]
    frames, stage_ms = {0: 5, 1: 0}, {4: 3.0}
    chunks = [
        (
            0.1 if 3 <= i < 7 else 1.0,
            chunk(i, frames.get(i, 4), latency, steady=i >= 3, stage_ms=stage_ms.get(i, 1.0)),
        )
        for i, latency in enumerate(latencies)
    ]
    stats = run(chunks, drained=1)
    summary = stats.summary()
    assert [record.phase for record in stats.records] == (
        ["filling"] * 3 + ["steady"] * 4 + ["drain"]
    )
    assert (summary["frames"], summary["chunks"]) == (29, 8)
    assert summary["steady_fps"] == pytest.approx(40)  # 4 chunks of 4 frames, 100 ms apart
    assert summary["steady_basis"] == "4 AR steps after the window was full"
    for percent in (50, 95, 99):
        expected = np.percentile(latencies[3:7], percent)
        assert summary[f"chunk_latency_p{percent}_ms"] == pytest.approx(expected)
    assert summary["decode_ms"] == 1.0  # the median of 1, 3, 1, 1
    assert summary["first_frame_latency_ms"] == pytest.approx(1000)
    assert summary["process_start_to_first_frame_ms"] > 0
    assert stats.recent_fps(2) == pytest.approx(8 / 1.1)


def test_a_stream_shorter_than_its_window_says_what_it_measured() -> None:
    summary = run([(1.0, chunk(0)), (1.0, chunk(1)), *((0.5, chunk(i)) for i in range(2, 6))])
    assert summary.summary()["steady_basis"] == "4 AR steps after 2 warm ones, window filling"
    assert summary.summary()["steady_fps"] == pytest.approx(8)
    short = run([(1.0, chunk(0, 5)), (1.0, chunk(1, 0)), (1.0, chunk(2, 4))], drained=1).summary()
    assert short["steady_basis"] == "all 2 AR steps, too few to leave any out"
    assert short["steady_fps"] == pytest.approx(2.5)


def test_the_first_frame_is_the_first_that_is_there() -> None:
    stats = run([(0.25, chunk(0, 0)), (0.25, chunk(1, 5))])
    assert stats.summary()["first_frame_latency_ms"] == pytest.approx(500)


def test_an_empty_stream_has_no_rates() -> None:
    summary = StreamStats().summary()
    assert summary["frames"] == 0 and "steady_fps" not in summary
    assert StreamStats().recent_fps() == 0


def test_json_holds_header_summary_and_records(tmp_path: Path) -> None:
    stats = run([(0.5, chunk(i)) for i in range(3)])
    path = tmp_path / "stats.json"
    stats.write_json(path, {"engine": "e", "versions": versions()}, {"mem_rss_gib": 1.5})
    report = json.loads(path.read_text())
    assert report["engine"] == "e" and set(report["versions"]) >= {"python", "torch", "sdrt"}
    assert report["summary"]["mem_rss_gib"] == 1.5 and report["summary"]["frames"] == 12
    assert [record["index"] for record in report["records"]] == [0, 1, 2]
    assert set(report["records"][0]["stages_ms"]) == set(STAGES)


def test_the_table_shows_the_numbers() -> None:
    console = Console(file=io.StringIO(), width=100)
    stats = run([(0.5, chunk(i)) for i in range(3)])
    console.print(stats.table({"mem_peak_gib": 3.25}))
    text = printed(console)
    for part in (
        "steady rate",
        "8.0 FPS",
        "first frame",
        "chunk latency p99",
        "decode",
        "3.25 GiB",
    ):
        assert part in text


def test_the_live_line_is_silent_away_from_a_terminal() -> None:
    stats = run([(0.5, chunk(i)) for i in range(3)])
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, highlight=False, width=120)
        with LiveLine(console) as live:
            live.update(stats)
        text = printed(console)
        assert ("8.0 FPS" in text and "decode 1.0" in text) == terminal
        assert bool(text) == terminal


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_process_age_counts_from_the_processes_start() -> None:
    code = (
        "import sys, time; time.sleep(0.3); sys.path.insert(0, sys.argv[1]);"
        "from runtime.measure.stats import process_age_ms; print(process_age_ms())"
    )
    root = str(Path(__file__).resolve().parents[3])
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True)
    elapsed_ms = (time.perf_counter() - started) * 1e3
    assert 300 <= float(done.stdout) <= elapsed_ms + 20, done.stderr
    age_ms = process_age_ms()
    assert age_ms is not None and age_ms > float(done.stdout) - 1e3
