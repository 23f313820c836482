"""The AR step at run time: the manifest's ops, bound to tensors, stages and streams."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdrt.runtime.directory.manifest import Manifest
from sdrt.runtime.directory.order import (
    CONDITION_STREAM,
    Event,
    Order,
    Place,
    derive_order,
)
from sdrt.runtime.directory.specs import (
    Advance,
    Copy,
    Fill,
    Noise,
    Op,
    Ref,
    Replay,
    StepSpec,
    Track,
)
from sdrt.runtime.directory.tensors import resolve
from sdrt.runtime.measure import profiler
from sdrt.runtime.measure.timing import Clock
from sdrt.runtime.stage import Stage
from sdrt.runtime.streams import Streams

FillNoise = Callable[[str, Tensor], object]
"""Fills a tensor, of the buffer of that name, with noise."""


class BoundOp:
    """An op, ready to run on the current stream."""

    def __init__(self, spec: Op, run: Callable[[], object]) -> None:
        self.spec, self.run = spec, run


class BoundTrack:
    """What one stream does in an AR step: ops between waits and records."""

    def __init__(
        self,
        spec: Track,
        place: tuple[int, int],
        ops: tuple[list[BoundOp], list[BoundOp]],
        order: Order,
        streams: Streams,
    ) -> None:
        """Put together what runs.

        Args:
            place: AR step and track, as ``order`` counts them.
            ops: of ``hand_over``, and the others.
        """
        self.spec, self.hand_over, self.ops = spec, *ops
        self._streams = streams
        count = len(self.hand_over)
        taken, given = count, count + 1 + len(self.ops)
        numbers = range(given + 1) if streams.are_ordered else ()
        waits = [order.waits.get(Place(*place, number), ()) for number in numbers]
        records = [order.records.get(Place(*place, number), ()) for number in numbers]
        self._around = [(tuple(w), tuple(r)) for w, r in zip(waits, records, strict=True)]
        self._before_ops: tuple[Event, ...] = sum(map(tuple, waits[taken:]), ())
        self._after_ops: tuple[Event, ...] = sum(map(tuple, records[taken:given]), ())
        self._after_give: tuple[Event, ...] = sum(map(tuple, records[given:]), ())

    def run(
        self, clock: Clock, take: Callable[[Ref], object], give: Callable[[Ref], object]
    ) -> None:
        """Submit the track to its stream.

        All that the ops have to wait for is waited for before the clock starts.

        Args:
            take: copies the step's input frames to where they go.
            give: starts the copy of its output frames from where they lie.
        """
        streams = self._streams
        with streams.on(self.spec.stream):
            for number, op in enumerate(self.hand_over):
                waits, records = self._around[number] if self._around else ((), ())
                for event in waits:
                    streams.wait(event)
                op.run()
                for event in records:
                    streams.record(event)
            for event in self._before_ops:
                streams.wait(event)
            clock.begin(self.spec.name)
            if self.spec.takes is not None:
                take(self.spec.takes)
            self.run_ops()
            for event in self._after_ops:
                streams.record(event)
            if self.spec.gives is not None:
                give(self.spec.gives)
            for event in self._after_give:
                streams.record(event)
            clock.end(self.spec.name)

    def run_ops(self) -> None:
        """Run the ops on the current stream; nothing is waited for, handed over or timed."""
        for op in self.ops:
            op.run()


class BoundStep:
    """An AR step."""

    def __init__(self, spec: StepSpec, tracks: list[BoundTrack]) -> None:
        self.spec, self.tracks = spec, tracks

    def track(self, name: str) -> BoundTrack:
        """Return a track by name."""
        return next(track for track in self.tracks if track.spec.name == name)


class Steps:
    """The program of an engine, bound to one session."""

    def __init__(
        self,
        manifest: Manifest,
        stages: Mapping[str, Stage],
        buffers: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        device: torch.device,
        overlap: bool,
        fill_noise: FillNoise,
    ) -> None:
        """Bind every op to its tensors.

        Args:
            overlap: give tracks the streams that the manifest names; else one stream runs all.
        """
        self._buffers, self._weights = buffers, weights
        self.stages, self.fill_noise = stages, fill_noise
        order = derive_order(manifest.steps, {stage.name: stage for stage in manifest.stages})
        self.streams = Streams(device, order.events, overlap)
        self.steps = [
            BoundStep(
                spec, [self._track(track, (i, n), order) for n, track in enumerate(spec.tracks)]
            )
            for i, spec in enumerate(manifest.steps)
        ]
        self.conditions = {
            condition.name: (
                resolve(condition.input, buffers, weights),
                [self._bind(op) for op in condition.ops],
            )
            for condition in manifest.conditions
        }

    def at(self, index: int) -> BoundStep:
        """Return the AR step ``index`` of a stream."""
        return next(step for step in reversed(self.steps) if step.spec.starts_at <= index)

    def run(self, index: int, track: str) -> None:
        """Run one track of the AR step ``index`` by itself: no frames, no clock, no events."""
        bound = self.at(index).track(track)
        with self.streams.on(bound.spec.stream):
            for op in (*bound.hand_over, *bound.ops):
                op.run()

    def result(self, track: str, index: int) -> Tensor:
        """Return what the last stage of a track makes, as the AR step ``index`` left it.

        Raises:
            LookupError: the step has no such track, or its stages have no single result.
        """
        replays = [op.spec for op in self.at(index).track(track).ops if isinstance(op.spec, Replay)]
        made = self.stages[replays[-1].stage].spec.makes
        if made is None:
            raise LookupError(f"track {track} of AR step {index} has no single result")
        return resolve(made, self._buffers, self._weights)

    def set_condition(self, name: str, value: Tensor) -> None:
        """Give a condition a new value, from the next track on; nothing waits for the device."""
        target, ops = self.conditions[name]
        with self.streams.on(CONDITION_STREAM):
            target.copy_(value, non_blocking=True)
            for op in ops:
                op.run()

    def close(self) -> None:
        """Let go of tensors and graphs, whoever still holds the steps."""
        self.steps, self.stages, self.conditions = [], {}, {}
        self._buffers = self._weights = {}

    def label(self, op: Op) -> str:
        """Return what an op is called in a profile."""
        if isinstance(op, Replay) and not self.stages[op.stage].captured:
            return f"run {op.stage}"
        return str(op)

    def capture(self) -> None:
        """Capture the stages of the AR step; those of conditions run once, uncaptured."""
        pools: dict[torch.cuda.Stream, Any] = {}
        for step in self.steps:
            for track in step.tracks:
                stream = self.streams.stream(track.spec.stream)
                assert stream is not None, "only CUDA stages are captured"
                pool = pools.setdefault(stream, torch.cuda.graph_pool_handle())
                for op in track.ops:
                    stage = self.stages[op.spec.stage] if isinstance(op.spec, Replay) else None
                    if stage is not None and not stage.captured:
                        with profiler.span(f"capture {stage.spec.name}"):
                            stage.capture(stream, pool)

    def _track(self, spec: Track, place: tuple[int, int], order: Order) -> BoundTrack:
        ops = [self._bind(op) for op in spec.hand_over], [self._bind(op) for op in spec.ops]
        return BoundTrack(spec, place, ops, order, self.streams)

    def _bind(self, op: Op) -> BoundOp:
        """Return what runs an op."""
        if isinstance(op, Replay):
            return BoundOp(op, self.stages[op.stage].run)
        target = resolve(op.target, self._buffers, self._weights)
        match op:
            case Copy():
                source = resolve(op.source, self._buffers, self._weights)
                return BoundOp(op, lambda: target.copy_(source))
            case Noise():
                return BoundOp(op, lambda: self.fill_noise(op.target.name, target))
            case Fill():
                return BoundOp(op, lambda: target.fill_(op.value))
            case Advance():
                return BoundOp(op, lambda: target.add_(op.by))
