"""Events between streams: enough of them, none too many, in every program and at random."""

import random
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import pytest

from sdrt.engine.preset.files import preset_names
from sdrt.export.plan.plan import Plan
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.order import (
    Event,
    Order,
    OrderError,
    Place,
    Touch,
    check_order,
    derive_order,
    touches,
)
from sdrt.runtime.directory.specs import (
    Condition,
    StepSpec,
    StreamName,
    Track,
    advance,
    buffer,
    copy,
    fill,
    replay,
    weight,
)

PRESETS = preset_names()
BACKENDS: tuple[Backend, ...] = ("inductor", "tensorrt-rtx")
PROGRAMS = pytest.mark.parametrize(
    ("preset", "backend"), [(p, b) for p in PRESETS for b in BACKENDS]
)


@pytest.fixture
def plan_of(planned) -> Callable[..., Plan]:
    return lambda preset, backend="inductor": planned(preset, backend)[1]


def states_of(plan: Plan) -> list[str]:
    return [name for name, spec in plan.buffers.items() if spec.kind == "state"]


def check(plan: Plan, order: Order | None = None, steps: tuple[StepSpec, ...] | None = None):
    steps = plan.steps if steps is None else steps
    check_order(steps, plan.stages, plan.conditions, states_of(plan), order)


def without(order: Order, field: str, place: Place, event: Event) -> Order:
    """Return an order that lacks one wait or one record."""
    left = [other for other in getattr(order, field)[place] if other != event]
    marks = {"waits": order.waits, "records": order.records}
    return Order(**{**marks, field: {**marks[field], place: left}})


def each(order: Order) -> Iterator[tuple[str, Place, Event]]:
    """Yield every wait and every record."""
    for field in ("waits", "records"):
        for place, events in getattr(order, field).items():
            for event in events:
                yield field, place, event


def changed(plan: Plan, phase: str, name: str, **update: object) -> tuple[StepSpec, ...]:
    """Return a plan's AR steps with the track ``name`` of a phase changed."""
    steps = []
    for step in plan.steps:
        tracks = tuple(
            track.model_copy(update=update) if (step.phase, track.name) == (phase, name) else track
            for track in step.tracks
        )
        steps.append(step.model_copy(update={"tracks": tracks}))
    assert tuple(steps) != plan.steps
    return tuple(steps)


# The programs of all presets


@PROGRAMS
def test_an_order_is_enough_and_none_of_it_can_be_left_out(plan_of, preset, backend) -> None:
    plan = plan_of(preset, backend)
    order = derive_order(plan.steps, plan.stages)
    check(plan, order)
    assert order.events == {event for events in order.waits.values() for event in events}
    for field, place, event in each(order):
        with pytest.raises(OrderError, match="may not have"):
            check(plan, without(order, field, place, event))


@PROGRAMS
def test_a_steady_step_hands_over_with_a_pair_of_events(plan_of, preset, backend) -> None:
    """Reference: by hand. Between two streams the later waits for the result, and the earlier,
    before it makes another, for its copy: 4 waits a step for three streams, 2 for two."""
    plan = plan_of(preset, backend)
    order, last = derive_order(plan.steps, plan.stages), len(plan.steps) - 1
    assert plan.steps[last].phase == "steady"
    rollout = plan.steps[last].tracks[-1].name == "finalize"
    latent = "latent" if rollout else "latent.steady"
    expected = {
        ("diffuse", Event(latent, "read", "decode")),
        ("decode", Event(latent, "written", "diffuse")),
    }
    if not rollout:
        expected |= {
            ("encode", Event("encoded.timestep", "read", "diffuse")),
            ("diffuse", Event("encoded.noisy", "written", "encode")),
        }
    found = [
        (plan.steps[last].tracks[place.track].name, event)
        for place, events in order.waits.items()
        for event in events
        if place.step == last
    ]
    assert set(found) == expected and len(found) == len(expected)
    recorded = [e for place, events in order.records.items() if place.step == last for e in events]
    assert sorted(recorded) == sorted(event for _, event in expected)


def test_the_first_step_waits_for_nothing_of_a_step_before(plan_of) -> None:
    """Only from track to track; the row batch's second step waits for its chunk, no frames yet."""
    plan = plan_of("tiny")
    waits = derive_order(plan.steps, plan.stages).waits
    found = {
        (place.step, event) for place, events in waits.items() for event in events if place.step < 2
    }
    assert found == {
        (0, Event("noisy.first", "written", "encode")),
        (0, Event("latent.first", "written", "diffuse")),
        (1, Event("encoded.noisy", "written", "encode")),
    }


# Programs that must be refused


def test_a_buffer_that_nothing_wrote_is_refused(plan_of) -> None:
    plan = plan_of("tiny")
    diffuse = next(track for track in plan.steps[1].tracks if track.name == "diffuse")
    for lost in diffuse.hand_over:
        kept = tuple(op for op in diffuse.hand_over if op != lost)
        name = lost.target.name  # type: ignore[union-attr]
        with pytest.raises(OrderError, match=rf"reads {name}, which nothing wrote"):
            check(plan, steps=changed(plan, "filling", "diffuse", hand_over=kept))
    with pytest.raises(OrderError, match="first step, track encode, op 2: reads frames.first"):
        check(plan, steps=changed(plan, "first", "encode", takes=None))
    with pytest.raises(OrderError, match="reads frames_out.first, which nothing wrote"):
        check(plan, steps=changed(plan, "first", "decode", ops=()))


def test_what_a_condition_never_made_is_refused(plan_of) -> None:
    plan = plan_of("tiny")
    with pytest.raises(OrderError, match="reads cross_k.0.*, which nothing wrote"):
        check_order(plan.steps, plan.stages, (), states_of(plan))
    silent = plan.conditions[0].model_copy(update={"ops": (copy(buffer("a"), buffer("b")),)})
    with pytest.raises(OrderError, match="condition prompt: reads a, which nothing wrote"):
        check_order(plan.steps, plan.stages, (silent,), states_of(plan))


@pytest.mark.parametrize(
    ("preset", "phase", "name", "stream"),
    [
        ("tiny", "first", "encode", "decode"),
        ("tiny", "filling", "decode", "encode"),
        ("tiny", "steady", "decode", "encode"),
        ("self-forcing-1.3b-480p", "first", "decode", "encode"),
        ("self-forcing-1.3b-480p", "steady", "decode", "encode"),
    ],
)
def test_a_track_on_another_stream_needs_other_events(plan_of, preset, phase, name, stream) -> None:
    """The events of the program as it was do not hold for it; its own do."""
    plan = plan_of(preset)
    steps = changed(plan, phase, name, stream=stream)
    with pytest.raises(OrderError, match=f"that stream {stream}|that stream {name} may not have"):
        check(plan, derive_order(plan.steps, plan.stages), steps)
    check(plan, steps=steps)


def test_what_conditions_make_is_read_on_their_stream_only(plan_of) -> None:
    """Prompts change at any time: no event can order that."""
    plan = plan_of("tiny")
    with pytest.raises(OrderError, match=r"cross_k\.0, which a condition does on stream diffuse"):
        check(plan, steps=changed(plan, "steady", "diffuse", stream="encode"))


def test_a_program_without_events_is_refused(plan_of) -> None:
    for preset in ("tiny", "self-forcing-1.3b-480p"):
        with pytest.raises(OrderError, match="may not have"):
            check(plan_of(preset), Order())


def test_tracks_that_change_places_are_refused(plan_of) -> None:
    """The DiT before the encoder, or the decoder before the DiT, reads what is not there yet."""
    plan = plan_of("tiny")
    order = derive_order(plan.steps, plan.stages)
    for step in plan.steps:
        for a, b in combinations(range(len(step.tracks)), 2):
            tracks = list(step.tracks)
            tracks[a], tracks[b] = tracks[b], tracks[a]
            swapped = step.model_copy(update={"tracks": tuple(tracks)})
            steps = tuple(swapped if other is step else other for other in plan.steps)
            with pytest.raises(OrderError):
                check(plan, order, steps)
    first = plan.steps[0]
    for tracks in (first.tracks[1::-1] + first.tracks[2:], first.tracks[:1] + first.tracks[:0:-1]):
        swapped = first.model_copy(update={"tracks": tracks})
        with pytest.raises(OrderError, match=r"reads (noisy|latent)\.first, which nothing wrote"):
            check(plan, steps=(swapped, *plan.steps[1:]))


# From one phase to the next


def track(stream: StreamName, *ops) -> Track:
    return Track(name=stream, stream=stream, ops=ops)


WRITES_A, READS_A = copy(weight("w"), buffer("a")), copy(buffer("a"), buffer("b"))


def program(*steps: tuple[int, list[Track]]) -> tuple[StepSpec, ...]:
    return tuple(
        StepSpec(phase="steady", starts_at=start, tracks=tuple(tracks)) for start, tracks in steps
    )


def test_a_new_phase_waits_for_the_last_of_the_phase_before() -> None:
    """The stream that made the buffer does not touch it any more, and its event stays."""
    steps = program((0, [track("encode", WRITES_A)]), (1, [track("diffuse", READS_A)]))
    order = derive_order(steps, {})
    assert order.waits == {Place(1, 0, 1): [Event("a", "written", "encode")]}
    assert order.records == {Place(0, 0, 1): [Event("a", "written", "encode")]}
    check_order(steps, {}, (), ())
    with pytest.raises(OrderError, match="touches a that stream encode may not have written yet"):
        check_order(steps, {}, (), (), Order())


def test_a_phase_of_one_step_is_not_taken_for_more() -> None:
    """Here the encoder learns of the decoder's write from the DiT, in the step after."""
    middle = [
        track("encode", copy(weight("w"), buffer("c"))),
        track("diffuse", copy(weight("w"), buffer("d"))),
    ]
    written, told = Event("a", "written", "decode"), Event("d", "written", "diffuse")
    order = Order(
        records={Place(0, 0, 1): [written], Place(1, 1, 1): [told]},
        waits={Place(1, 1, 1): [written], Place(1, 0, 1): [told]},
    )
    ends = (0, [track("decode", WRITES_A)]), [track("encode", WRITES_A)]
    once, twice = (program(ends[0], (1, middle), (start, ends[1])) for start in (2, 3))
    check_order(twice, {}, (), (), order)
    with pytest.raises(OrderError, match="a that stream decode may not have written yet"):
        check_order(once, {}, (), (), order)
    assert races(once, {}, order, 5) and not races(twice, {}, order, 5)
    assert derive_order(once, {}).waits == {Place(2, 0, 1): [written]}


@PROGRAMS
def test_phases_of_a_preset_follow_each_other_in_order(plan_of, preset, backend) -> None:
    """Reference: the brute-force checker, over every AR step up to the second steady one."""
    plan = plan_of(preset, backend)
    order = derive_order(plan.steps, plan.stages)
    last = plan.steps[-1].starts_at
    assert not races(plan.steps, plan.stages, order, last + 3)
    for begin in {step.starts_at for step in plan.steps[1:]}:
        crossing = [index for index, step in enumerate(plan.steps) if step.starts_at < begin]
        lost = Order(
            waits=order.waits,
            records={
                place: events
                for place, events in order.records.items()
                if place.step not in crossing
            },
        )
        assert races(plan.steps, plan.stages, lost, last + 3), f"from {begin} on"


# At random, against an independent checker


class Node(NamedTuple):
    """One run of an op."""

    stream: str
    touch: Touch
    before: set[int]
    """Every earlier run that is certainly done."""


def races(steps, stages, order: Order, count: int) -> bool:
    """Return whether two ops of ``count`` AR steps touch a buffer in no certain order.

    Written the long way: every op of every AR step is a node of a graph that knows all nodes
    before it, along its stream and along the events; then all pairs are looked at.
    """
    nodes: list[Node] = []
    latest_of: dict[str, int] = {}
    recorded: dict[Event, int] = {}
    for index in range(count):
        number = max(n for n, step in enumerate(steps) if step.starts_at <= index)
        for t, one in enumerate(steps[number].tracks):
            for position, found in enumerate(touches(one, stages)):
                place = Place(number, t, position)
                direct = [recorded[e] for e in order.waits.get(place, ()) if e in recorded]
                direct += [latest_of[one.stream]] if one.stream in latest_of else []
                before = set(direct).union(*(nodes[each].before for each in direct))
                nodes.append(Node(one.stream, found, before))
                latest_of[one.stream] = me = len(nodes) - 1
                recorded |= dict.fromkeys(order.records.get(place, ()), me)
    touching: dict[str, list[tuple[int, bool]]] = {}
    for index, node in enumerate(nodes):
        for name in node.touch.reads | node.touch.writes:
            touching.setdefault(name, []).append((index, name in node.touch.writes))
    return any(
        (a_writes or b_writes) and a not in nodes[b].before
        for runs in touching.values()
        for (a, a_writes), (b, b_writes) in combinations(runs, 2)
    )


def draw(rng: random.Random) -> tuple[StepSpec, ...]:
    """Return a small program of up to three specs over three streams and four buffers."""
    names: tuple[StreamName, ...] = ("encode", "diffuse", "decode")
    buffers = [buffer(name) for name in "abcd"[: rng.randint(2, 4)]]

    def op():
        one, two = rng.choice(buffers), rng.choice(buffers)
        kinds = (copy(one, two), copy(weight("w"), one), fill(one, 0), advance(one, 1))
        return rng.choice(kinds)

    def some_track() -> Track:
        ends = {"takes": rng.choice(buffers)} if rng.random() < 0.2 else {}
        ends |= {"gives": rng.choice(buffers)} if rng.random() < 0.2 else {}
        name = rng.choice(names)
        given = tuple(op() for _ in range(rng.randint(0, 1)))
        ops = tuple(op() for _ in range(rng.randint(0, 3)))
        return Track(name=name, stream=name, hand_over=given, ops=ops, **ends)

    starts = [0, *sorted(rng.sample(range(1, 5), rng.randint(0, 2)))]
    return program(*((start, [some_track() for _ in range(rng.randint(1, 4))]) for start in starts))


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_are_ordered_and_no_event_is_idle(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        steps = draw(rng)
        order, count = derive_order(steps, {}), steps[-1].starts_at + 5
        check_order(steps, {}, (), "abcd", order)
        assert not races(steps, {}, order, count), steps
        for field, place, event in each(order):
            lesser = without(order, field, place, event)
            assert races(steps, {}, lesser, count), (steps, field, place, event)
            with pytest.raises(OrderError):
                check_order(steps, {}, (), "abcd", lesser)


@pytest.mark.parametrize("seed", range(60))
def test_both_checkers_agree_on_any_events(seed: int) -> None:
    """Events put anywhere: some orders hold, most do not."""
    rng, found = random.Random(seed), []
    for _ in range(20):
        steps = draw(rng)
        order = derive_order(steps, {})
        for place, events in list(order.waits.items()):
            if rng.random() < 0.15:  # another event than the one that is needed
                others = sorted(order.events - set(events))
                order.waits[place] = rng.sample(others, min(len(others), rng.randint(0, 2)))
        expected = races(steps, {}, order, steps[-1].starts_at + 5)
        try:
            check_order(steps, {}, (), "abcd", order)
            found.append((False, expected))
        except OrderError:
            found.append((True, expected))
    assert all(ours == theirs for ours, theirs in found)


def test_a_condition_of_ops_counts_as_written() -> None:
    made = Condition(
        name="prompt", source="text", input=buffer("in"), ops=(copy(buffer("in"), buffer("a")),)
    )
    steps = program((0, [track("diffuse", READS_A)]))
    check_order(steps, {}, (made,), ())
    with pytest.raises(OrderError, match="touches a, which a condition does on stream diffuse"):
        check_order(program((0, [track("decode", READS_A)])), {}, (made,), ())


def test_stages_that_the_program_does_not_have() -> None:
    with pytest.raises(KeyError, match="nothing"):
        derive_order(program((0, [track("encode", replay("nothing"))])), {})
