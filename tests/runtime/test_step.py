"""The AR steps of both flows: which program an AR step of a stream runs, for any preset."""

from contextlib import AbstractContextManager, nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from sdrt.engine.preset.preset import load
from sdrt.export.flows.rollout import Rollout
from sdrt.export.flows.stream_batch import StreamBatch
from sdrt.export.plan.draft import Draft
from sdrt.export.recipe import Recipe
from sdrt.runtime.directory.order import Event, derive_order
from sdrt.runtime.directory.specs import Op, Replay, StepSpec, all_ops, buffer
from sdrt.runtime.explain import track_lines
from sdrt.runtime.step import BoundOp, BoundStep, BoundTrack, Steps

TIMESTEPS = (900, 700, 500, 300, 100)
AHEAD = 3
"""AR steps that are looked at after the one that should be steady."""


class Parts:
    """Stages by name alone: nothing is planned but the AR steps."""

    def encode(self, phase, latent_frames, results) -> str:
        return f"encode.{phase}"

    def decode(self, phase, latent_frames, latent) -> str:
        return f"decode.{phase}"

    def run(self, dit_pass) -> list[str]:
        clean = ".clean" if dit_pass.result is None else ""
        return [f"dit{clean}.{dit_pass.phase}"]

    def ring_rows(self, row: int) -> list:
        return [buffer("ring.0.k", (row, row + 1))]


PARTS = SimpleNamespace(encoder=Parts(), dit=Parts(), decoder=Parts())


def flow_steps(flow: type, settings: list[str]) -> tuple[StepSpec, ...]:
    return flow(Draft(Recipe.of(load("tiny", settings))), PARTS).steps()


def bound(specs: tuple[StepSpec, ...]) -> Steps:
    """Return AR steps that can be asked for, and no more."""
    steps = object.__new__(Steps)
    steps.steps = [BoundStep(spec, []) for spec in specs]
    return steps


def stages(step: StepSpec, name: str) -> list[str]:
    """Return the stages that a track replays, each once; none if there is no such track."""
    ops = (op for track in step.tracks if track.name == name for op in all_ops(track))
    return list(dict.fromkeys(op.stage for op in ops if isinstance(op, Replay)))


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("window", [4, 5, 6, 8, 12, 21])
def test_a_stream_batch_is_full_once_its_last_row_is(count: int, window: int) -> None:
    """Reference: the rules by index. The first chunk has a latent frame more."""
    first, frames = 2, 1
    settings = [f"schedule.steps={list(TIMESTEPS[:count])}", f"stream.window_frames={window}"]
    specs = flow_steps(StreamBatch, [*settings, "stream.sink_frames=1"])

    def is_steady(index: int) -> bool:
        return index > 0 and first + max(0, index - count) * frames + frames >= window

    steps = bound(specs)
    for index in range(window + count + AHEAD):
        step = steps.at(index).spec
        expected = "first" if index == 0 else "steady" if is_steady(index) else "filling"
        assert step.phase == expected
        assert stages(step, "encode") == [f"encode.{'steady' if index else 'first'}"]
        assert stages(step, "diffuse") == [f"dit.{expected}"]
        decodes = index == 0 or index >= count
        assert stages(step, "decode") == [f"decode.{'steady' if index else 'first'}"] * decodes
        assert (step.gives is not None) == decodes and step.takes is not None
        assert stages(step, "finalize") == []
    starts = [spec.starts_at for spec in specs]
    assert len(starts) <= 4 and starts == sorted(set(starts)) and is_steady(starts[-1])


ROLLOUT = ["flow=rollout", "encoder=none", "schedule.noise_scale=null"]


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [4, 6, 7, 12, 21])
def test_a_rollout_is_full_once_its_chunks_are(window: int, frames: int) -> None:
    """Reference: the rules by index, with and without a clean pass."""
    for count, clean in product((1, 4), (True, False)):
        settings = [f"schedule.steps={list(TIMESTEPS[:count])}", f"stream.window_frames={window}"]
        settings += [f"stream.chunk_latent_frames={frames}", f"schedule.clean_pass={clean}"]
        specs = flow_steps(Rollout, [*ROLLOUT, *settings, "stream.sink_frames=0"])
        steps = bound(specs)
        for index in range(window // frames + AHEAD):
            step = steps.at(index).spec
            phase = "steady" if (index + 1) * frames >= window else "filling"
            assert step.phase == (phase if index else "first")
            assert stages(step, "diffuse") == [f"dit.{phase}"]
            assert stages(step, "decode") == [f"decode.{'steady' if index else 'first'}"]
            assert stages(step, "finalize") == [f"dit.clean.{phase}"] * clean
            assert step.takes is None and step.gives is not None
        assert len(specs) <= 3


def test_every_denoise_step_has_its_row_of_the_schedule() -> None:
    """In their order, from the first row to the last, a pass each."""
    for flow, settings in ((StreamBatch, []), (Rollout, [*ROLLOUT, "schedule.clean_pass=true"])):
        steps = flow_steps(flow, [*settings, f"schedule.steps={list(TIMESTEPS)}"])
        (diffuse,) = (track for track in steps[0].tracks if track.name == "diffuse")
        timesteps, passes = [], 0
        for op in diffuse.ops:
            if isinstance(op, Replay):
                passes += 1
            elif op.op == "copy" and op.source.name == "schedule.timesteps" and op.source.rows:
                timesteps.append(op.source.rows)
        assert timesteps == [(row, row + 1) for row in range(5)] and passes == 5


# What a track runs


class Log:
    """Streams, clock and ops in one, that note what happens in the words of ``explain``."""

    are_ordered = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on(self, name: str) -> AbstractContextManager:
        return nullcontext()

    def wait(self, event: Event) -> None:
        self.lines.append(f"wait for: {event.buffer} {event.access} by {event.stream}")

    def record(self, event: Event) -> None:
        self.lines.append(f"record: {event.buffer} {event.access} by {event.stream}")

    def begin(self, track: str) -> None:
        self.lines.append("clock begins")

    def end(self, track: str) -> None:
        self.lines.append("clock ends")

    def op(self, spec: Op) -> BoundOp:
        return BoundOp(spec, lambda: self.lines.append(str(spec)))


@pytest.mark.parametrize("name", ["sdv2-1.3b-480p", "self-forcing-1.3b-480p"])
def test_a_track_does_what_its_program_says(name: str) -> None:
    """Reference: the printed program. No wait falls into the track's time."""
    plan = Recipe.of(load(name), "cuda").plan()
    order = derive_order(plan.steps, plan.stages)
    index, step = len(plan.steps) - 1, plan.steps[-1]
    for number, track in enumerate(step.tracks):
        log: Any = Log()
        ops = [log.op(op) for op in track.hand_over], [log.op(op) for op in track.ops]
        bound_track = BoundTrack(track, (index, number), ops, order, log)
        bound_track.run(
            log,
            lambda target, log=log: log.lines.append(f"input frames -> {target}"),
            lambda source, log=log: log.lines.append(f"{source} -> output frames"),
        )
        done = [line for line in log.lines if not line.startswith("clock")]
        assert done == list(track_lines(track, order, (index, number)))
        timed = log.lines[log.lines.index("clock begins") :]
        assert not any(line.startswith("wait") for line in timed)
        assert timed[-1] == "clock ends"
