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

    records: dict[Place, list[Event]] = field(default_factory=lambda: defaultdict(list))
    waits: dict[Place, list[Event]] = field(default_factory=lambda: defaultdict(list))

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
    """Return the events that keep streams from reading too early and from overwriting too soon."""
    places = list(_places(steps, stages))
    streams: dict[str, dict[Access, set[str]]] = defaultdict(
        lambda: {"read": set(), "written": set()}
    )
    for _, stream, found in places:
        for name in found.reads:
            streams[name]["read"].add(stream)
        for name in found.writes:
            streams[name]["written"].add(stream)
    recorded: dict[Event, dict[tuple[int, int], Place]] = defaultdict(dict)
    waited: dict[Place, list[Event]] = {}
    for place, stream, found in places:
        for event in _accesses(found, stream):
            others = streams[event.buffer]["written"] - {stream}
            if event.access == "written":
                others |= streams[event.buffer]["read"] - {stream}
            if others:
                recorded[event][place[:2]] = place  # the track's last access counts
        waited[place] = list(_awaited(found, stream, streams))
    return _reduced(recorded, waited)


def check_order(
    steps: Sequence[StepSpec],
    stages: Mapping[str, StageSpec],
    conditions: Sequence[Condition],
    states: Iterable[str],
    order: Order | None = None,
    laps: int = 3,
) -> None:
    """Run the program on paper, with a clock a stream, and look at every access.

    Args:
        states: buffers that may be read before anything wrote them; they start as zeros.
        order: the events; derived ones unless given.
        laps: AR steps that are looked at of each spec.
    Raises:
        OrderError: a buffer is read that nothing wrote, or two streams that touch the same buffer
            are not ordered by an event.
    """
    order = order or derive_order(steps, stages)
    written = set(states)
    for condition in conditions:
        written.add(condition.input.name)
        for op in condition.ops:
            found = touch(op, stages)
            _check_written(f"condition {condition.name}", found, written)
            written |= found.writes
    race = _Race(order)
    for index, step in enumerate(steps):
        for _ in range(laps if index else 1):
            for number, track in enumerate(step.tracks):
                for position, found in enumerate(touches(track, stages)):
                    where = f"{step.phase} step, track {track.name}, op {position}"
                    _check_written(where, found, written)
                    written |= found.writes
                    race.run(Place(index, number, position), track.stream, found, where)


class _Race:
    """Vector clocks: what each stream knows to be done of every other."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._clocks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._events: dict[Event, dict[str, int]] = {}
        self._last: dict[tuple[str, Access, str], int] = {}

    def run(self, place: Place, stream: str, found: Touch, where: str) -> None:
        """Run one op; refuse it where it touches what another stream may still be at."""
        clock = self._clocks[stream]
        for event in self._order.waits.get(place, ()):
            for other, time in self._events.get(event, {}).items():
                clock[other] = max(clock[other], time)
        clock[stream] += 1
        for (buffer, access, other), time in self._last.items():
            conflict = buffer in found.writes or (buffer in found.reads and access == "written")
            if conflict and other != stream and clock[other] < time:
                raise OrderError(
                    f"{where}: touches {buffer} that stream {other} may not have {access} yet"
                )
        for event in _accesses(found, stream):
            self._last[event.buffer, event.access, stream] = clock[stream]
        for event in self._order.records.get(place, ()):
            self._events[event] = dict(clock)


def _check_written(where: str, found: Touch, written: set[str]) -> None:
    if missing := sorted(found.reads - written):
        raise OrderError(f"{where}: reads {', '.join(missing)}, which nothing wrote")


def _places(
    steps: Sequence[StepSpec], stages: Mapping[str, StageSpec]
) -> Iterator[tuple[Place, str, Touch]]:
    for index, step in enumerate(steps):
        for number, track in enumerate(step.tracks):
            for position, found in enumerate(touches(track, stages)):
                yield Place(index, number, position), track.stream, found


def _accesses(found: Touch, stream: str) -> Iterator[Event]:
    yield from (Event(name, "read", stream) for name in sorted(found.reads))
    yield from (Event(name, "written", stream) for name in sorted(found.writes))


def _awaited(
    found: Touch, stream: str, streams: Mapping[str, Mapping[Access, set[str]]]
) -> Iterator[Event]:
    for name in sorted(found.reads | found.writes):
        for other in sorted(streams[name]["written"] - {stream}):
            yield Event(name, "written", other)
        if name in found.writes:
            for other in sorted(streams[name]["read"] - {stream}):
                yield Event(name, "read", other)


def _reduced(
    recorded: Mapping[Event, Mapping[tuple[int, int], Place]], waited: Mapping[Place, list[Event]]
) -> Order:
    """Leave out waits that another one implies, and records that nobody waits for."""

    def covers(later: Event, earlier: Event) -> bool:
        """Whether who waited for ``later`` has waited for ``earlier``: same stream, no sooner."""
        mine, other = recorded[later], recorded[earlier]
        return later.stream == earlier.stream and all(
            track in mine and mine[track].op >= place.op for track, place in other.items()
        )

    order = Order()
    done: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for place, events in waited.items():
        kept = done[place[:2]]  # a track waits once: nothing is recorded while it is submitted
        new = [event for event in dict.fromkeys(events) if event not in kept]
        for index, event in enumerate(new):
            rest = (*kept, *new[index + 1 :], *(e for e in new[:index] if not covers(event, e)))
            if not any(covers(other, event) for other in rest):
                order.waits[place].append(event)
        kept += order.waits[place]
    for event in {event for events in order.waits.values() for event in events}:
        for place in recorded[event].values():
            order.records[place].append(event)
    return order
