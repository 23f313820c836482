"""Ranges around a session, and the tables read out of a trace."""

import json
from contextlib import contextmanager

import pytest
import torch

from sdrt.bench.measure.eager import eager_session
from sdrt.bench.measure.frames import chunks_for
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.recipe import Recipe
from sdrt.runtime.measure import profiler
from sdrt.runtime.measure.timing import TRACKS
from sdrt.runtime.measure.trace import StreamTrace, Trace

SMALL = [
    *("dit.dim=48", "dit.num_heads=4", "dit.ffn_dim=64", "dit.num_layers=2", "dit.freq_dim=16"),
    *("dit.text_len=4", "dit.text_dim=16", "stream.height=32", "stream.width=48"),
]


@pytest.fixture(scope="module")
def session():
    """A small stream-batch session over eager modules."""
    preset = load("tiny", SMALL)
    opened = eager_session(Recipe.of(preset), open_source("synthetic", preset))
    opened.prepare("neon discs")
    return opened


class Log:
    """An emitter that notes the ranges with their depth."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, str]] = []
        self._depth = 0

    @contextmanager
    def __call__(self, name: str):
        self.ranges.append((self._depth, name))
        self._depth += 1
        yield
        self._depth -= 1


def _owners(session) -> list:
    tracks = [track for step in session.steps.steps for track in step.tracks]
    return [session, session.host, *tracks, *(op for track in tracks for op in track.ops)]


def test_ranges_nest_as_the_step_does(session) -> None:
    session.prepare("neon discs")
    chunks = chunks_for(session)
    log = Log()
    detach = profiler.attach(session, log)
    session.step(next(chunks))
    first = list(log.ranges)
    log.ranges.clear()
    session.step(next(chunks))
    detach()
    steady = log.ranges
    assert steady[0] == (0, "AR step")
    # The stream batch makes no frames yet in its second AR step.
    assert [name for _, name in steady if name in TRACKS] == ["encode", "diffuse"]
    depth = dict(reversed([(name, depth) for depth, name in steady]))
    assert depth["encode"] == depth["diffuse"] == 1
    assert depth["copy in"] == depth["copy encoded.noisy -> noisy.steady"] == 2
    assert depth["run dit[0:2].filling"] == depth["noise -> renoise.steady"] == 2
    assert (0, "wait for frames") in steady
    # The first chunk passes its denoise steps one after another.
    assert [name for _, name in first].count("run dit[0:2].first") == 2
    assert "copy out" in [name for _, name in first]


def test_off_is_the_same_code_as_without_a_profiler(session) -> None:
    """Nothing is left on any object, and none was there: so profiling off costs nothing."""
    before = [dict(vars(owner)) for owner in _owners(session)]
    profiler.attach(session, Log())()
    assert [dict(vars(owner)) for owner in _owners(session)] == before
    assert not {"submit", "receive"} & set(vars(session))


def test_sessions_open_with_ranges_where_a_tool_listens(monkeypatch) -> None:
    monkeypatch.setenv(profiler.NVTX_VARIABLE, "0")
    assert profiler._listening() is None
    monkeypatch.delenv(profiler.NVTX_VARIABLE)
    monkeypatch.delenv(profiler.LISTENING_VARIABLE, raising=False)
    assert profiler._listening() is None
    preset, log = load("tiny", SMALL), Log()
    with profiler.emitting(log):
        opened = eager_session(Recipe.of(preset), open_source("synthetic", preset))
        with profiler.span("load"):
            pass
    assert (0, "load") in log.ranges
    assert "submit" in vars(opened)
    with profiler.span("nothing listens"):
        assert (0, "nothing listens") not in log.ranges


def test_a_stream_is_traced_once_it_is_steady(session, tmp_path) -> None:
    session.prepare("neon discs")
    chunks = chunks_for(session)
    path = tmp_path / "trace.json"
    with StreamTrace(session, path, steps=2) as trace:
        for _ in range(9):
            session.submit(next(chunks))
            trace.step(session.receive().steady)
    assert trace.written
    found = Trace(path)
    assert found.steps() == 2
    rows = {row["range"]: row for row in found.stage_rows()}
    assert rows["run dit[0:2].steady"]["calls"] == 2
    assert rows["diffuse"]["kernels"] > 10
    assert rows["AR step"]["host_us"] >= rows["diffuse"]["host_us"]
    assert "submit" not in vars(session)


def test_a_stream_too_short_to_trace_says_so(session, tmp_path) -> None:
    path = tmp_path / "trace.json"
    with StreamTrace(session, path) as trace:
        trace.step(False)
    assert not path.exists()
    assert "window was full" in str(trace.report()[0])


def _event(category: str, name: str, start: float, duration: float, correlation: int = 0) -> dict:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start,
        "dur": duration,
        "tid": 1,
        "args": {"correlation": correlation},
    }


def test_kernels_of_a_graph_belong_to_the_range_that_launched_it(tmp_path) -> None:
    """As CUPTI reports it: a graph's kernels run later, under the launch's correlation."""
    events = [
        _event("user_annotation", "AR step", 0, 100),
        _event("user_annotation", "diffuse", 10, 40),
        _event("user_annotation", "decode", 60, 20),
        _event("cuda_runtime", "cudaGraphLaunch", 20, 5, 7),
        _event("cuda_runtime", "cudaStreamSynchronize", 30, 5, 8),
        _event("cuda_runtime", "cudaMemcpyAsync", 65, 2, 9),
        _event("cuda_runtime", "cudaLaunchKernel", 150, 2, 10),
        *(_event("kernel", "gemm", 200 + 10 * i, 8, 7) for i in range(3)),
        _event("kernel", "norm", 240, 2, 7),
        _event("gpu_memcpy", "DtoH", 300, 4, 9),
        _event("kernel", "outside", 310, 1, 10),
        {"ph": "M", "name": "process_name", "args": {}},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    trace = Trace(path)
    rows = {row["range"]: row for row in trace.stage_rows()}
    assert rows["AR step"] == {
        "range": "AR step",
        "calls": 1,
        "host_us": 100,
        "device_us": 30,
        "launches": 2,
        "kernels": 5,
    }
    assert (rows["diffuse"]["launches"], rows["diffuse"]["kernels"]) == (1, 4)
    first, second = trace.kernel_rows("diffuse")
    assert (first["name"], first["calls"], first["us"]) == ("gemm", 3, 24)
    assert second["share"] == pytest.approx(2 / 26)
    assert [row["name"] for row in trace.kernel_rows("decode")] == ["DtoH"]


def test_nvtx_needs_no_package() -> None:
    emitter = profiler.nvtx_emitter()
    assert emitter is not None or not torch.cuda.is_available()


def test_sdrun_writes_a_trace_and_a_table(tiny_engine, tmp_path, capsys) -> None:
    from PIL import Image

    from sdrt.runtime.cli import main

    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(56):
        Image.new("RGB", (224, 128), (4 * index, 0, 0)).save(frames / f"{index:03d}.png")
    trace = tmp_path / "trace.json"
    command = ["--engine", str(tiny_engine), "--input", str(frames), "--prompt", "neon discs"]
    command += ["--output", str(tmp_path / "out.mp4"), "--profile", str(trace)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "run dit[0:8].steady" in shown and "ui.perfetto.dev" in shown
    assert Trace(trace).steps() == 3
