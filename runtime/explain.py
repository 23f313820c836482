"""The program of an engine for people: what an AR step does, by phase, track and op."""

from collections.abc import Iterable, Iterator, Sequence

from sdrt.runtime.directory.manifest import Manifest
from sdrt.runtime.directory.order import Event, Order, Place, derive_order
from sdrt.runtime.directory.specs import Copy, Op, StepSpec, Track

INDENT = "  "


def explain(manifest: Manifest) -> Iterator[str]:
    """Yield the lines of an engine's program.

    Events are shown where they are waited for and recorded; a CPU, or a single stream, has none.
    """
    stream = manifest.stream
    yield f"{manifest.name}: {stream.width}x{stream.height}, {stream.frame_rate} frames a second"
    takes = f"{stream.first_frames_in} frames, then {stream.frames_in}"
    gives = f"{stream.first_frames_out}, then {stream.frames_out}"
    yield f"an AR step takes {takes if stream.takes_frames else 'none'} and gives {gives}"
    for condition in manifest.conditions:
        yield f"when the {condition.name} changes, with {condition.input} from the host:"
        yield from (INDENT + line for line in _ops(condition.ops))
    order = derive_order(manifest.steps, {stage.name: stage for stage in manifest.stages})
    for index, step in enumerate(manifest.steps):
        yield f"AR step {_range(manifest.steps, index)}, {step.phase}:"
        for number, track in enumerate(step.tracks):
            yield f"{INDENT}{track.name}, on stream {track.stream}:"
            yield from (2 * INDENT + line for line in track_lines(track, order, (index, number)))


def _range(steps: Sequence[StepSpec], index: int) -> str:
    """Return which AR steps a spec is for: ``3``, ``1 to 3``, ``from 4 on``."""
    first = steps[index].starts_at
    if index + 1 == len(steps):
        return f"from {first} on"
    last = steps[index + 1].starts_at - 1
    return str(first) if last == first else f"{first} to {last}"


def track_lines(track: Track, order: Order, place: tuple[int, int]) -> Iterator[str]:
    """Yield a track's ops between what they wait for and what they record."""
    count = len(track.hand_over)
    taken, given = count, count + 1 + len(track.ops)

    def waits(numbers: Iterable[int]) -> Iterator[str]:
        return _events("wait for", order.waits, place, numbers)

    def records(numbers: Iterable[int]) -> Iterator[str]:
        return _events("record", order.records, place, numbers)

    for number, op in enumerate(track.hand_over):
        yield from waits([number])
        yield str(op)
        yield from records([number])
    yield from waits(range(taken, given + 1))
    if track.takes is not None:
        yield f"input frames -> {track.takes}"
    yield from _ops(track.ops)
    yield from records(range(taken, given + 1))
    if track.gives is not None:
        yield f"{track.gives} -> output frames"


def _events(
    verb: str,
    found: dict[Place, list[Event]],
    place: tuple[int, int],
    numbers: Iterable[int],
) -> Iterator[str]:
    for number in numbers:
        for event in found.get(Place(*place, number), ()):
            yield f"{verb}: {event.buffer} {event.access} by {event.stream}"


def _ops(ops: Sequence[Op]) -> Iterator[str]:
    """Yield ops a line each; a run of copies within one buffer after another is one line."""
    run: list[Copy] = []
    for op in ops:
        if isinstance(op, Copy) and op.source.name == op.target.name:
            run.append(op)
            continue
        yield from _copies(run)
        run = []
        yield str(op)
    yield from _copies(run)


def _copies(run: Sequence[Copy]) -> Iterator[str]:
    if len(run) > 1:
        yield f"{run[0]}, and {len(run) - 1} more like it up to {run[-1].target}"
    else:
        yield from map(str, run)
