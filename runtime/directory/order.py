"""The order of what runs on different CUDA streams: events derived from who reads and writes what.

An event is named after a buffer, a stream and what the stream did with the buffer. It is recorded
after the last such op of a track, and whoever is about to touch the buffer on another stream waits
for its latest record. As the host submits one track after another, the latest record is that of
the access before: so the same events order the ops of one AR step and those of successive ones,
whatever their phases.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.specs import (
    Advance,
    Condition,
    Op,
    Replay,
    StageSpec,
    StepSpec,
    Track,
    op_refs,
)

Access = Literal["read", "written"]
CONDITION_STREAM = "diffuse"
"""Where conditions run: what they make is read there only, so that nothing waits for it."""
LAPS = 2
"""Runs of an AR step that tell of all others: an access is ordered after that of the step before,
by what lies between the two, and so it is from then on."""


class Event(NamedTuple):
    """A point in the work of a stream."""

    buffer: str
    access: Access
    stream: str


class Place(NamedTuple):
    """An op: AR step (as an index into the specs), track, and position in the track."""

    step: int
    track: int
    op: int


@dataclass(frozen=True)
class Touch:
    """The buffers that an op reads and writes."""

    reads: frozenset[str]
    writes: frozenset[str]


class OrderError(SdrtError):
    """A program that reads what nothing wrote, or whose streams can overtake each other."""


@dataclass
class Order:
    """Which events an op records when it is done, and which it waits for before it begins."""

    records: dict[Place, list[Event]] = field(default_factory=dict)
    waits: dict[Place, list[Event]] = field(default_factory=dict)

    @property
    def events(self) -> set[Event]:
        """Every event that is recorded."""
        return {event for events in self.records.values() for event in events}


def touches(track: Track, stages: Mapping[str, StageSpec]) -> list[Touch]:
    """Return what each op of a track touches.

    The positions are those of ``hand_over``, the input frames, ``ops``, the output frames.
    """
    taken = frozenset({track.takes.name} if track.takes else ())
    given = frozenset({track.gives.name} if track.gives else ())
    nothing: frozenset[str] = frozenset()
    return [
        *(touch(op, stages) for op in track.hand_over),
        Touch(nothing, taken),
        *(touch(op, stages) for op in track.ops),
        Touch(given, nothing),
    ]


def touch(op: Op, stages: Mapping[str, StageSpec]) -> Touch:
    """Return the buffers that an op reads and writes; weights never change."""
    if isinstance(op, Replay):
        stage = stages[op.stage]
        return Touch(frozenset(stage.reads()), frozenset(stage.writes()))
    *sources, target = op_refs(op)
    reads = {ref.name for ref in sources if ref.kind == "buffer"}
    if isinstance(op, Advance):
        reads.add(target.name)
    return Touch(frozenset(reads), frozenset({target.name}))


def derive_order(steps: Sequence[StepSpec], stages: Mapping[str, StageSpec]) -> Order:
    """Return the events that keep streams from reading too early and from overwriting too soon.

    None can be left out: without any one of them :func:`check_order` refuses the program.
    """
    runs = [run for run in _shared(_runs(steps, stages)) if run.found.reads or run.found.writes]
    order = _all_events(runs)
    for marks in (order.waits, order.records):
        for place, events in list(marks.items()):
            for event in tuple(events):
                marks[place] = [other for other in marks[place] if other != event]
                if _first_race(runs, order) is not None:
                    marks[place].append(event)
            if not marks[place]:
                del marks[place]
    return order


def check_order(
    steps: Sequence[StepSpec],
    stages: Mapping[str, StageSpec],
    conditions: Sequence[Condition],
    states: Iterable[str],
    order: Order | None = None,
) -> None:
    """Run the program on paper, with a clock a stream, and look at every access.

    Args:
        states: buffers that may be read before anything wrote them; they start as zeros.
        order: the events; derived ones unless given.
    Raises:
        OrderError: a buffer is read that nothing wrote, two streams that touch the same buffer
            are not ordered by an event, or AR steps read beside ``CONDITION_STREAM`` what a
            condition makes.
    """
    written, made = set(states), set()
    for condition in conditions:
        written.add(condition.input.name)
        for op in condition.ops:
            found = touch(op, stages)
            _check_written(f"condition {condition.name}", found, written)
            written |= found.writes
            made |= {condition.input.name, *found.reads, *found.writes}
    runs = list(_runs(steps, stages))
    for run in runs:
        where = _where(steps, run.place)
        _check_written(where, run.found, written)
        written |= run.found.writes
        if run.stream != CONDITION_STREAM and (both := made & (run.found.reads | run.found.writes)):
            raise OrderError(
                f"{where}: touches {min(both)}, which a condition does on stream {CONDITION_STREAM}"
            )
    race = _first_race(_shared(runs), derive_order(steps, stages) if order is None else order)
    if race is not None:
        place, event = race
        raise OrderError(
            f"{_where(steps, place)}: touches {event.buffer} that stream {event.stream} "
            f"may not have {event.access} yet"
        )


class _Run(NamedTuple):
    """An op, as it is submitted once."""

    place: Place
    stream: str
    found: Touch


def _runs(steps: Sequence[StepSpec], stages: Mapping[str, StageSpec]) -> Iterator[_Run]:
    """Yield ops in the order of their submission, each AR step as often as it may matter."""
    for index, step in enumerate(steps):
        runs = [
            _Run(Place(index, number, position), track.stream, found)
            for number, track in enumerate(step.tracks)
            for position, found in enumerate(touches(track, stages))
        ]
        is_last = index + 1 == len(steps)
        laps = LAPS if is_last else min(LAPS, steps[index + 1].starts_at - step.starts_at)
        yield from laps * runs


def _shared(runs: Iterable[_Run]) -> list[_Run]:
    """Leave out buffers that one stream alone touches: they need no events."""
    runs, streams = list(runs), defaultdict(set)
    for run in runs:
        for name in run.found.reads | run.found.writes:
            streams[name].add(run.stream)
    shared = {name for name, found in streams.items() if len(found) > 1}
    return [
        run._replace(found=Touch(run.found.reads & shared, run.found.writes & shared))
        for run in runs
    ]


def _all_events(runs: Sequence[_Run]) -> Order:
    """Return waits for every access of another stream, recorded after a track's last one."""
    order = Order()
    accesses = {event for run in runs for event in _accesses(run)}
    last = {(run.place[:2], event): run.place for run in runs for event in _accesses(run)}
    for (_, event), place in last.items():
        order.records.setdefault(place, []).append(event)
    for run in {run.place: run for run in runs}.values():
        awaited = [event for event in sorted(accesses) if _conflicts(run, event)]
        if awaited:
            order.waits[run.place] = awaited
    return order


def _first_race(runs: Iterable[_Run], order: Order) -> tuple[Place, Event] | None:
    """Return the first op that another stream may not be ready for, and what that has yet to do.

    Every stream has a vector clock: what it knows to be done, by itself and by every other.
    """
    clocks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    recorded: dict[Event, dict[str, int]] = {}
    latest: dict[Event, int] = {}
    for run in runs:
        clock = clocks[run.stream]
        for event in order.waits.get(run.place, ()):
            for other, time in recorded.get(event, {}).items():
                clock[other] = max(clock[other], time)
        for event, time in latest.items():
            if clock[event.stream] < time and _conflicts(run, event):
                return run.place, event
        clock[run.stream] += 1
        for event in _accesses(run):
            latest[event] = clock[run.stream]
        for event in order.records.get(run.place, ()):
            recorded[event] = dict(clock)
    return None


def _accesses(run: _Run) -> Iterator[Event]:
    yield from (Event(name, "read", run.stream) for name in sorted(run.found.reads))
    yield from (Event(name, "written", run.stream) for name in sorted(run.found.writes))


def _conflicts(run: _Run, event: Event) -> bool:
    """Whether an op must not run beside another stream's access of a buffer."""
    if event.stream == run.stream:
        return False
    found, name = run.found, event.buffer
    return name in found.writes or (name in found.reads and event.access == "written")


def _check_written(where: str, found: Touch, written: set[str]) -> None:
    if missing := sorted(found.reads - written):
        raise OrderError(f"{where}: reads {', '.join(missing)}, which nothing wrote")


def _where(steps: Sequence[StepSpec], place: Place) -> str:
    step = steps[place.step]
    return f"{step.phase} step, track {step.tracks[place.track].name}, op {place.op}"
