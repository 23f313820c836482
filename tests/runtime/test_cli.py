"""``sdrun`` with a fake session: arguments, refusals, padding, interruption, the demo's clip."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sdrt.runtime import cli, demo
from sdrt.runtime.chunk import Chunk
from sdrt.runtime.directory.contents import DeviceSpec, TextSpec, WeightsSpec
from sdrt.runtime.directory.manifest import SCHEMA_VERSION, Manifest, ManifestError, write_manifest
from sdrt.runtime.directory.specs import StepSpec, StreamSpec
from sdrt.runtime.measure.stats import STAGES
from sdrt.runtime.sample_clip import sample_clip
from sdrt.runtime.session import Session, SessionError
from sdrt.runtime.video.reader import open_input
from sdrt.runtime.video.writer import FrameWriter

HEIGHT, WIDTH = 32, 48
STEPS = 3
"""Denoise steps of the fake stream batch: finished chunks come two AR steps late."""


class FakeSession:
    """Inverts its input (or counts up, without one), as late as a real stream batch."""

    @staticmethod
    def on_submit(index: int) -> None:
        """Called at each submit; tests put their own here."""

    def __init__(
        self, manifest: Manifest, device: str | None, overlap: bool, text_encoder: str | None
    ) -> None:
        self.manifest, self.stream, self.overlap = manifest, manifest.stream, overlap
        self.text_encoder, self.released = text_encoder, False
        self.engine = SimpleNamespace(prompts=SimpleNamespace(release=self._release))
        self.device = SimpleNamespace(type=device or "cuda")
        self.takes_frames = self.stream.takes_frames
        self.submitted: list[int] = []
        self.most_in_flight = 0
        self.closed = False
        self._storage = [np.empty((12, HEIGHT, WIDTH, 3), np.uint8) for _ in range(3)]

    def __enter__(self) -> "FakeSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def _release(self) -> None:
        """Free the text encoder; it is not needed once the prompt is encoded."""
        assert self._index == 0
        self.released = True

    def prepare(self, prompt: str, seed: int = 0) -> None:
        self.prompt, self.seed = prompt, seed
        self._rows: list[np.ndarray] = []
        self._done: list[np.ndarray] = []
        self._index = self._received = 0

    def chunk_frames(self) -> int:
        return (4 if self._index else 5) if self.takes_frames else 0

    def submit(self, frames: np.ndarray | None) -> None:
        assert (0 if frames is None else len(frames)) == self.chunk_frames()
        self.on_submit(self._index)
        self.submitted.append(self.chunk_frames())
        if frames is None:
            first = 12 * self._index - (3 if self._index else 0)
            count = 12 if self._index else 9
            level = np.arange(first, first + count, dtype=np.uint8)
            made = np.broadcast_to(level[:, None, None, None], (count, HEIGHT, WIDTH, 3))
        elif self._index == 0:
            made = 255 - frames
        else:
            self._rows.append(255 - frames)
            made = self._rows.pop(0) if len(self._rows) == STEPS else frames[:0]
        self._done.append(made)
        self._index += 1
        self.most_in_flight = max(self.most_in_flight, self._index - self._received)
        assert self._index - self._received <= 2

    def receive(self) -> Chunk:
        made = self._done.pop(0)
        storage = self._storage[self._received % 3]
        storage[:] = 77  # what an earlier receive handed out is gone
        storage[: len(made)] = made
        self._received += 1
        stages_ms = {stage: 1.0 for stage in STAGES}
        return Chunk(self._received - 1, storage[: len(made)], stages_ms, 2.0, self._received > 4)

    def drain(self) -> Iterator[Chunk]:
        for _ in range(STEPS - 1 if self.takes_frames else 0):
            self.submit(np.zeros((4, HEIGHT, WIDTH, 3), np.uint8))
            yield self.receive()

    def memory_gib(self) -> dict[str, float]:
        return {"mem_rss_gib": 0.5}


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[FakeSession]:
    """Every session that was opened."""
    opened: list[FakeSession] = []

    def fake_open(
        directory: Path,
        device: str | None = None,
        overlap: bool = True,
        text_encoder: str | None = None,
    ) -> FakeSession:
        from sdrt.runtime.directory.manifest import read_manifest

        manifest = read_manifest(Path(directory))
        opened.append(FakeSession(manifest, device, overlap, text_encoder))
        return opened[-1]

    monkeypatch.setattr(Session, "open", fake_open)
    return opened


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Path]:
    """Callable: an engine directory that holds a manifest only."""

    def make(flow: str = "stream-batch", synthetic: bool = False, name: str = "engine") -> Path:
        batched = flow == "stream-batch"
        stream = StreamSpec(
            height=HEIGHT,
            width=WIDTH,
            frame_rate=16,
            first_frames_in=5 if batched else 0,
            frames_in=4 if batched else 0,
            first_frames_out=5 if batched else 9,
            frames_out=4 if batched else 12,
            latent_frames=1 if batched else 3,
            lookahead_frames=0,
            drain_steps=1 if batched else 0,
        )
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            sdrt="0",
            preset={"name": "fake"},
            stream=stream,
            steps=(StepSpec(phase="first", starts_at=0, tracks=()),),
            conditions=(),
            device=DeviceSpec(type="cpu", name="cpu", capability=None, driver=None),
            versions={},
            built="",
            ops=(),
            packages={},
            buffers={},
            stages=(),
            weights=WeightsSpec(sources={"dit": "/a/path"}, synthetic=synthetic, files=()),
            text=TextSpec(kind="hashed-words"),
        )
        directory = tmp_path / name
        directory.mkdir()
        write_manifest(directory, manifest)
        return directory

    return make


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[[int], Path]:
    """Callable: a clip in which frame i is of grey level 5 i."""

    def make(frames: int) -> Path:
        levels = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 5
        path = tmp_path / f"clip{frames}.mp4"
        with FrameWriter(path, WIDTH, HEIGHT, 16) as writer:
            writer.write(np.broadcast_to(levels, (frames, HEIGHT, WIDTH, 3)))
        return path

    return make


def levels_of(path: Path, width: int = WIDTH) -> np.ndarray:
    """Return the grey levels of a file's frames."""
    return np.array([frame.mean() for frame in open_input(path, width, HEIGHT, 16)])


def sdrun(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


# Streaming


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("frames", [1, 2, 5, 6, 9, 12, 13, 20, 41])
def test_n_frames_give_n_frames_in_order(
    sessions, make_engine, make_clip, tmp_path: Path, frames: int, device: str
) -> None:
    out = tmp_path / "out.mp4"
    code = sdrun(
        *("--engine", make_engine(), "--input", make_clip(frames), "--prompt", "p"),
        *("--output", out, "--seed", 3, "--device", device),
    )
    assert code == 0
    expected = 255 - 5 * np.arange(frames)
    assert np.abs(levels_of(out) - expected).max() <= 2.5
    (session,) = sessions
    assert (session.prompt, session.seed, session.closed) == ("p", 3, True)
    # One ahead where submit returns at once; on a CPU it would only add latency.
    assert session.most_in_flight == (2 if device == "cuda" and frames > 5 else 1)


def test_overlap_can_be_left_out(sessions, make_engine, make_clip, tmp_path: Path) -> None:
    """It goes to the session, for GPUs with little memory."""
    engine, clip = make_engine(), make_clip(5)
    for name, option in (("a", ()), ("b", ("--no-overlap",))):
        arguments = ("--engine", engine, "--input", clip, "--prompt", "p", *option)
        assert sdrun(*arguments, "--output", tmp_path / f"{name}.mp4") == 0
    assert [session.overlap for session in sessions] == [True, False]


def test_too_little_gpu_memory_is_one_line(
    make_engine, make_clip, tmp_path: Path, monkeypatch, capsys
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB …")

    monkeypatch.setattr(Session, "open", refuse)
    arguments = ("--engine", make_engine(), "--input", make_clip(5), "--prompt", "p")
    assert sdrun(*arguments, "--output", tmp_path / "out.mp4") == 2
    message = "error: the GPU's memory is too small for this engine; --no-overlap needs less\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("limit", [1, 5, 7, 30])
def test_max_frames_limits_the_output(
    sessions, make_engine, make_clip, tmp_path: Path, limit: int
) -> None:
    out = tmp_path / "out.mp4"
    arguments = ("--engine", make_engine(), "--input", make_clip(21), "--prompt", "p")
    assert sdrun(*arguments, "--output", out, "--max-frames", limit) == 0
    count = min(limit, 21)
    assert np.abs(levels_of(out) - (255 - 5 * np.arange(count))).max() <= 2.5
    real_chunks = 1 + max(0, -(-(count - 5) // 4))
    assert len(sessions[0].submitted) == real_chunks + STEPS - 1


@pytest.mark.parametrize(
    ("limit", "count", "steps"), [(None, 81, 7), (9, 9, 1), (10, 10, 2), (1, 1, 1)]
)
def test_text_to_video(sessions, make_engine, tmp_path: Path, limit, count, steps) -> None:
    out = tmp_path / "out.mp4"
    arguments = ["--engine", make_engine("rollout"), "--prompt", "p", "--output", out]
    arguments += ["--input", "none"] if limit is None else ["--max-frames", limit]
    assert sdrun(*arguments) == 0
    assert np.abs(levels_of(out) - np.arange(count)).max() <= 2.5
    assert sessions[0].submitted == [0] * steps


def test_a_folder_of_images_is_an_input(sessions, make_engine, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(11):
        Image.new("RGB", (WIDTH, HEIGHT), (number * 20,) * 3).save(folder / f"{number}.png")
    out = tmp_path / "out.mp4"
    assert (
        sdrun("--engine", make_engine(), "--input", folder, "--prompt", "p", "--output", out) == 0
    )
    assert np.abs(levels_of(out) - (255 - 20 * np.arange(11))).max() <= 2.5


def test_stats_and_table(sessions, make_engine, make_clip, tmp_path: Path, capsys) -> None:
    stats, out = tmp_path / "stats.json", tmp_path / "out.mp4"
    arguments = ("--engine", make_engine(synthetic=True), "--input", make_clip(38))
    assert sdrun(*arguments, "--prompt", "p", "--output", out, "--stats", stats) == 0
    text = capsys.readouterr().out
    assert "synthetic weights" in text and "steady rate" in text and "chunk latency p99" in text
    assert f"wrote {out}: 38 frames" in text
    report = json.loads(stats.read_text())
    assert (report["engine"], report["preset"], report["seed"]) == ("engine", "fake", 0)
    assert report["synthetic_weights"] is True and report["interrupted"] is False
    assert report["summary"]["frames"] == 41  # three of the last chunk's were padding
    assert report["summary"]["mem_rss_gib"] == 0.5
    assert report["summary"]["steady_basis"] == "6 AR steps after the window was full"
    assert [record["phase"] for record in report["records"]][-3:] == ["steady", "drain", "drain"]
    assert "/" not in "".join(stats.read_text().split("\n")).replace("frames / AR", "")


def test_notes_say_what_was_changed(sessions, make_engine, tmp_path: Path, capsys) -> None:
    clip = tmp_path / "clip.mp4"
    with FrameWriter(clip, 2 * WIDTH, HEIGHT, 8) as writer:
        writer.write(np.zeros((5, HEIGHT, 2 * WIDTH, 3), np.uint8))
    out = tmp_path / "out.mp4"
    assert sdrun("--engine", make_engine(), "--input", clip, "--prompt", "p", "--output", out) == 0
    assert capsys.readouterr().out.count("note: input: ") == 2
    assert len(levels_of(out)) == 10


# Interruption


@pytest.mark.parametrize("how", ["exception", "SIGTERM", "SIGHUP", "SIGINT"])
def test_interrupting_leaves_a_playable_file(
    sessions, make_engine, make_clip, tmp_path: Path, monkeypatch, capsys, how: str
) -> None:
    def interrupt(index: int) -> None:
        if index == 6 and how == "exception":
            raise KeyboardInterrupt
        if index == 6:
            signal.raise_signal(getattr(signal, how))

    monkeypatch.setattr(FakeSession, "on_submit", staticmethod(interrupt))
    before = signal.getsignal(signal.SIGTERM)
    out, stats = tmp_path / "out.mp4", tmp_path / "stats.json"
    arguments = ("--engine", make_engine(), "--input", make_clip(41), "--prompt", "p")
    assert sdrun(*arguments, "--output", out, "--stats", stats) == 130
    assert np.abs(levels_of(out) - (255 - 5 * np.arange(13))).max() <= 2.5
    assert "steady rate" in capsys.readouterr().out
    assert json.loads(stats.read_text())["interrupted"] is True
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(tmp_path.glob("*partial*")) and sessions[0].closed


def test_interrupting_before_the_first_frame(
    make_engine, make_clip, tmp_path: Path, monkeypatch, capsys
) -> None:
    def fake_open(*_: object) -> FakeSession:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "open", fake_open)
    out = tmp_path / "out.mp4"
    arguments = ("--engine", make_engine(), "--input", make_clip(9), "--prompt", "p")
    assert sdrun(*arguments, "--output", out) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert not out.exists()


# Refusals


def refused(capsys: pytest.CaptureFixture, folder: Path, *arguments: object) -> str:
    """Run and return the error; checks that it is one line and nothing is left behind."""
    before = sorted(folder.iterdir())
    assert sdrun(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    return captured.err


def test_refused_before_a_session_is_opened(
    sessions, make_engine, make_clip, tmp_path: Path, capsys
) -> None:
    engine, text_engine = make_engine(), make_engine("rollout", name="text")
    clip = make_clip(5)
    short = tmp_path / "short.mp4"
    short.write_bytes(clip.read_bytes()[:-200])
    out = tmp_path / "out.mp4"
    good = {"--engine": engine, "--input": clip, "--prompt": "p", "--output": out}
    cases: list[tuple[dict, str]] = [
        ({"--engine": None}, "no engine: give --engine DIR"),
        ({"--engine": tmp_path / "nothing"}, "no such engine directory"),
        ({"--engine": clip.parent}, "not an engine directory"),
        ({"--prompt": None}, "no prompt: give --prompt TEXT"),
        ({"--prompt": "  "}, "no prompt"),
        ({"--output": None}, "no output: give --output FILE.mp4"),
        ({"--output": tmp_path / "out.gif"}, "must end in .mp4"),
        ({"--output": tmp_path / "missing" / "out.mp4"}, "does not exist"),
        ({"--output": "/proc/out.mp4"}, "cannot write /proc/out.mp4"),
        ({"--output": clip}, "is the input"),
        ({"--stats": tmp_path / "missing" / "s.json"}, "does not exist"),
        ({"--stats": tmp_path / "s.txt"}, "must end in .json"),
        ({"--input": tmp_path / "nothing.mp4"}, "no such input"),
        ({"--input": short}, "truncated"),
        ({"--input": None}, "is a video-to-video engine: give --input"),
        ({"--input": "none"}, "is a video-to-video engine: give --input"),
        ({"--engine": text_engine}, "is a text-to-video engine: leave out --input"),
        ({"--device": "tpu"}, "unknown --device tpu"),
        ({"--text-encoder": "tpu"}, "unknown --text-encoder tpu: expected cuda or cpu"),
        ({"--max-frames": 0}, "--max-frames"),
        ({"--seed": "x"}, "--seed"),
        ({"--no-such-option": 1}, "--no-such-option"),
    ]
    for change, reason in cases:
        arguments = [(k, v) for k, v in (good | change).items() if v is not None]
        assert reason in refused(capsys, tmp_path, *sum(arguments, ())), change
    assert "--demo brings its own engine" in refused(capsys, tmp_path, "--demo", "--engine", engine)
    assert sessions == []


@pytest.mark.parametrize("error", [ManifestError("wrong\nGPU"), SessionError("no CUDA")])
def test_refusals_of_the_session(
    make_engine, make_clip, tmp_path: Path, monkeypatch, capsys, error: Exception
) -> None:
    def fake_open(*_: object) -> FakeSession:
        raise error

    monkeypatch.setattr(Session, "open", fake_open)
    arguments = ("--engine", make_engine(), "--input", make_clip(5), "--prompt", "p")
    line = refused(capsys, tmp_path, *arguments, "--output", tmp_path / "out.mp4")
    assert line == "error: " + " ".join(str(error).split()) + "\n"


def test_a_clip_that_breaks_off_leaves_nothing(
    sessions, make_engine, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    engine, noise = make_engine(), np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3))
    from PIL import Image

    for number in range(30):
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    last = folder / "29.png"
    last.write_bytes(last.read_bytes()[:500])
    arguments = ("--engine", engine, "--input", folder, "--prompt", "p")
    line = refused(capsys, tmp_path, *arguments, "--output", tmp_path / "out.mp4")
    assert "cannot read the image" in line and len(sessions[0].submitted) > 3


def test_errors_that_are_bugs_keep_their_traceback(
    sessions, make_engine, make_clip, tmp_path: Path, monkeypatch
) -> None:
    def broken(self, prompt: str, seed: int = 0) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(FakeSession, "prepare", broken)
    with pytest.raises(ValueError, match="a bug"):
        sdrun(
            *("--engine", make_engine(), "--input", make_clip(5), "--prompt", "p"),
            *("--output", tmp_path / "out.mp4"),
        )
    assert not list(tmp_path.glob("out*"))


def test_help_is_quick_and_imports_nothing_heavy(capsys) -> None:
    assert sdrun("--help") == 0
    assert "--engine" in capsys.readouterr().out
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import runtime.cli;"
        "print([m for m in ('torch', 'av', 'numpy', 'pydantic') if m in sys.modules])"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# The demo


@pytest.fixture
def builder(monkeypatch, make_engine, tmp_path: Path) -> list[list[str]]:
    """Commands that were run in place of the builder; each makes the fake engine."""
    commands: list[list[str]] = []

    def fake_run(command: list[str], check: bool) -> SimpleNamespace:
        commands.append(command)
        target = Path(command[command.index("--out") + 1])
        if "--force" in command:
            shutil.rmtree(target)
        make_engine(name=f"built{len(commands)}").rename(target)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", fake_run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SDRT_CACHE", str(tmp_path / "cache"))
    return commands


def test_the_demo_builds_once_and_shows_both_sides(
    sessions, builder, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sdrun("--demo", "--max-frames", 13) == 0
    text = capsys.readouterr().out
    assert "building the tiny engine, once" in text
    assert "wrote sdrt-demo.mp4: 13 frames, input left, output right" in text
    assert sdrun("--demo", "--max-frames", 5, "--prompt", "lava", "--output", "b.mp4") == 0
    assert "building" not in capsys.readouterr().out
    (command,) = builder
    assert command[1:5] == ["-m", "sdrt.export.cli", "--preset", "tiny"]
    assert command[-2:] == ["--device", "cpu"] and "--force" not in command
    name = Path(command[command.index("--out") + 1]).name
    assert name.startswith(f"tiny-torch{torch.__version__}-cpu-")
    assert [session.prompt for session in sessions] == ["neon discs", "lava"]
    # In grey: H.264's colours are too coarse for edges in so small a picture.
    shown = np.stack(list(open_input(Path("sdrt-demo.mp4"), 2 * WIDTH, HEIGHT, 16))).mean(axis=-1)
    clip = np.stack(list(sample_clip(13, HEIGHT, WIDTH))).mean(axis=-1)
    assert np.abs(shown[:, :, :WIDTH] - clip).mean() < 6
    assert np.abs(shown[:, :, WIDTH:] - (255 - clip)).mean() < 6


def test_the_demo_without_overlap(sessions, builder, tmp_path: Path) -> None:
    """Also where a refused engine is built again."""
    stale = demo.engine_directory("cpu")
    stale.mkdir(parents=True)
    (stale / "manifest.json").write_text("{}")
    arguments = ("--demo", "--max-frames", 5, "--output", tmp_path / "out.mp4")
    assert sdrun(*arguments, "--no-overlap") == 0 and sdrun(*arguments, "--no-overlap") == 0
    assert sdrun(*arguments) == 0
    assert [session.overlap for session in sessions] == [False, False, True]


def test_the_demo_takes_a_clip(sessions, builder, make_clip, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    assert sdrun("--demo", "--input", make_clip(11), "--output", out) == 0
    frames = list(open_input(out, 2 * WIDTH, HEIGHT, 16))
    left = [frame[:, : WIDTH - 4].mean() for frame in frames]
    right = [frame[:, WIDTH + 4 :].mean() for frame in frames]
    assert np.abs(np.array(left) - 5 * np.arange(11)).max() < 3
    assert np.abs(np.array(right) - (255 - 5 * np.arange(11))).max() < 3


def test_a_refused_cached_engine_is_built_again_once(
    sessions, builder, tmp_path: Path, capsys
) -> None:
    stale = demo.engine_directory("cpu")
    stale.mkdir(parents=True)
    (stale / "manifest.json").write_text("{}")
    assert sdrun("--demo", "--max-frames", 5, "--output", tmp_path / "out.mp4") == 0
    text = capsys.readouterr().out
    assert "the cached engine is refused" in text and "building it again, once" in text
    (command,) = builder
    assert "--force" in command and len(sessions) == 1


def test_a_failed_build_is_one_line(builder, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    out = tmp_path / "out.mp4"
    assert sdrun("--demo", "--output", out) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: building the tiny engine failed with exit code 2")
    assert error.count("\n") == 1 and not out.exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDRT_CACHE", str(tmp_path / "file"))
    assert "set SDRT_CACHE" in refused(capsys, tmp_path, "--demo", "--output", out)


def test_cache_root(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SDRT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert demo.cache_root() == Path.home() / ".cache" / "sdrt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.cache_root() == tmp_path / "sdrt"
    monkeypatch.setenv("SDRT_CACHE", str(tmp_path / "own"))
    assert demo.engine_directory("cpu").parent == tmp_path / "own" / "engines"


def test_the_sample_clip_is_deterministic_and_moves() -> None:
    first = np.stack(list(sample_clip(9)))
    assert first.shape == (9, 128, 224, 3) and first.dtype == np.uint8
    assert (first == np.stack(list(sample_clip(9)))).all()
    assert (first != np.stack(list(sample_clip(9, seed=8)))).any()
    change = np.abs(np.diff(first.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert (change > 0.5).all() and (change < 30).all()
    assert sum(1 for _ in sample_clip()) == 97
