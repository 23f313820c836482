"""``sdrun`` as a process, over a built engine: a clip in, an mp4 and its numbers out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdrt.runtime.measure.stats import STAGES
from sdrt.runtime.sample_clip import sample_clip
from sdrt.runtime.video.reader import open_input
from sdrt.runtime.video.writer import FrameWriter

HEIGHT, WIDTH = 128, 224


def sdrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdrt.runtime.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """22 frames: neither whole chunks nor the encoder's lookahead fit into them evenly."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with FrameWriter(path, WIDTH, HEIGHT, 16) as writer:
        writer.write(np.stack(list(sample_clip(22))))
    return path


def test_a_clip_becomes_a_clip(tiny_engine: Path, clip: Path, tmp_path: Path) -> None:
    out, stats = tmp_path / "out.mp4", tmp_path / "stats.json"
    arguments = ("--engine", tiny_engine, "--input", clip, "--prompt", "neon discs", "--seed", 3)
    done = sdrun(*arguments, "--output", out, "--stats", stats)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"wrote {out}: 22 frames" in done.stdout and "note:" not in done.stdout
    frames = np.stack(list(open_input(out, WIDTH, HEIGHT, 16)))
    assert frames.shape == (22, HEIGHT, WIDTH, 3) and frames.std() > 20

    report = json.loads(stats.read_text())
    assert report["engine"] == tiny_engine.name and report["preset"] == "tiny"
    assert (report["seed"], report["interrupted"]) == (3, False)
    assert report["synthetic_weights"] is False
    summary = report["summary"]
    for key in (
        *STAGES,
        *(f"chunk_latency_p{percent}_ms" for percent in (50, 95, 99)),
        *("first_frame_latency_ms", "process_start_to_first_frame_ms", "steady_fps"),
        "mem_rss_gib",
    ):
        assert summary[key] >= 0, key
    assert summary["steady_fps"] > 0 and summary["first_frame_latency_ms"] > 0
    phases = [record["phase"] for record in report["records"]]
    # 22 frames and 3 of lookahead: 8, then 4 at a time; one AR step more to empty the batch.
    assert phases == ["filling"] * 5 + ["steady"] + ["drain"]
    assert [record["frames"] for record in report["records"]] == [5, 0, 4, 4, 4, 4, 4]

    again = tmp_path / "again.mp4"
    assert sdrun(*arguments, "--output", again, "--max-frames", 7).returncode == 0
    fewer = np.stack(list(open_input(again, WIDTH, HEIGHT, 16)))
    assert len(fewer) == 7
    # The same seed, and only H.264 between the two.
    assert np.abs(fewer.astype(int) - frames[:7]).mean() < 3


def test_what_goes_wrong_leaves_nothing(tiny_engine: Path, tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    import wave

    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    for source, reason in ((sound, "no video stream"), (empty, "cannot read")):
        arguments = ("--engine", tiny_engine, "--input", source, "--prompt", "p")
        done = sdrun(*arguments, "--output", tmp_path / "out.mp4")
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and reason in done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before
