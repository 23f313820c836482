"""An engine and its sessions: what they share, what closing frees, prompts beside the stream."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from sdrt.bench.measure.eager import eager_session
from sdrt.bench.measure.frames import chunks_for
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.export.recipe import Recipe
from sdrt.runtime.directory.manifest import TextSpec
from sdrt.runtime.engine import Engine
from sdrt.runtime.measure import profiler
from sdrt.runtime.session import Session, SessionError
from sdrt.runtime.text.encoder import HashedWords, TextEncoder, TextEncoderError
from sdrt.runtime.text.prompts import Prompts

SMALL = [
    *("dit.dim=48", "dit.num_heads=4", "dit.ffn_dim=64", "dit.num_layers=2", "dit.freq_dim=16"),
    *("dit.text_len=4", "dit.text_dim=16", "stream.height=32", "stream.width=48"),
    *("taehv.encoder_width=8", "taehv.decoder_widths=[8, 8, 8, 8]"),
]
CHUNKS = 8


def open_engine(device: str = "cpu") -> Engine:
    """Return an engine whose programs are eager modules; no session of it is open."""
    preset = load("tiny", SMALL)
    with eager_session(Recipe.of(preset, device), open_source("synthetic", preset), device) as one:
        return one.engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    with open_engine() as opened:
        yield opened


def open_session(engine: Engine) -> Session:
    return engine.session(capture=False)


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    with open_engine() as engine, open_session(engine) as session:
        session.prepare("a")
        chunks, made = chunks_for(session), []
        for _ in range(CHUNKS):
            made.append(next(chunks))
            session.step(made[-1])
    return made


def run(session: Session, chunks: list[np.ndarray]) -> list[np.ndarray]:
    return [session.step(chunk).copy() for chunk in chunks]


def stream(engine: Engine, clip: list[np.ndarray], prompt: str, seed: int = 0) -> list[np.ndarray]:
    with open_session(engine) as session:
        session.prepare(prompt, seed)
        return run(session, clip)


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# What sessions share


def arguments(session: Session) -> list[Tensor]:
    calls = (call for stage in session.steps.stages.values() for call in stage._calls)
    return [tensor for _, tensors in calls for tensor in tensors]


def test_sessions_share_weights_and_nothing_else(engine: Engine) -> None:
    weights = {weight.data_ptr() for weight in engine.weights.values()}
    with open_session(engine) as one, open_session(engine) as two:
        first, second = ({each.data_ptr() for each in arguments(s)} for s in (one, two))
        assert first & weights == second & weights != set()
        assert first & second == first & weights
        shared = {id(tensor) for tensor in one.buffers.values()}
        assert not shared & {id(tensor) for tensor in two.buffers.values()}


def test_sessions_of_an_engine_are_streams_of_their_own(engine: Engine, clip) -> None:
    """Interleaved, with other prompts and seeds; closing one leaves the other alone."""
    alone = [stream(engine, clip, "neon discs", 1), stream(engine, clip, "lava", 2)]
    assert not equal(*alone)
    one, two = open_session(engine), open_session(engine)
    one.prepare("neon discs", 1)
    two.prepare("lava", 2)
    made: list[list[np.ndarray]] = [[], []]
    for chunk in clip[:4]:
        for session, frames in zip((one, two), made, strict=True):
            frames.append(session.step(chunk).copy())
    one.close()
    made[1] += run(two, clip[4:])
    two.close()
    assert equal(made[0], alone[0][:4]) and equal(made[1], alone[1])
    assert equal(stream(engine, clip, "lava", 2), alone[1])  # the engine is still there


# What closing frees


class NoRange:
    """A profiler that notes nothing."""

    def __call__(self, name: str):
        return nullcontext()


def parts(session: Session) -> list[object]:
    """Return everything that a session made for itself."""
    tracks = [track for step in session.steps.steps for track in step.tracks]
    ops = [op for track in tracks for op in (*track.hand_over, *track.ops)]
    return [
        session.steps,
        session.host,
        *session.host._frames_in,
        *session.host._frames_out,
        *session.buffers.values(),
        *session.steps.stages.values(),
        *session.steps.steps,
        *tracks,
        *ops,
    ]


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the cycle collector from tidying up: what is freed inside goes by itself."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("profiled", [False, True])
def test_closing_a_session_frees_it_at_once(engine: Engine, clip, profiled: bool) -> None:
    """On a GPU, memory that waits for the cycle collector is memory that is not there."""
    with profiler.emitting(NoRange()) if profiled else nullcontext():
        session = open_session(engine)
    session.prepare("neon discs")
    session.step(clip[0])
    session.set_prompt("lava")
    session.submit(clip[1])  # closed with a step in flight
    with no_collection():
        alive = [weakref.ref(part) for part in parts(session)]
        assert len(alive) > 100
        session.close()
        assert [ref() for ref in alive if ref() is not None] == []
        gone = weakref.ref(session)
        del session
        assert gone() is None
    assert engine.weights and engine.programs


def test_a_closed_session_says_so(engine: Engine, clip) -> None:
    session = open_session(engine)
    session.prepare("neon discs")
    session.submit(clip[0])
    session.close()
    session.close()
    uses: list[Callable[[], object]] = [
        lambda: session.prepare("lava"),
        lambda: session.set_prompt("lava"),
        lambda: session.submit(clip[1]),
        session.receive,
        lambda: list(session.drain()),
    ]
    for use in uses:
        with pytest.raises(SessionError):
            use()


def test_closing_an_engine_frees_its_weights(clip) -> None:
    engine = open_engine()
    with no_collection():
        session = open_session(engine)
        weights = [weakref.ref(weight) for weight in engine.weights.values()]
        programs = [weakref.ref(program) for program in engine.programs.values()]
        engine.close()
        assert all(ref() is not None for ref in weights)  # the session still has them
        session.close()
        assert not any(ref() is not None for ref in (*weights, *programs))


@pytest.mark.gpu
def test_closing_gives_the_device_its_memory_back() -> None:
    """Reference: the allocator's count. A second session adds its buffers and no weights."""
    engine = open_engine("cuda")
    frames = np.zeros((8, 32, 48, 3), np.uint8)

    def allocated() -> int:
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # one a stream, which later sessions use again
        return torch.cuda.memory_allocated()

    def opened() -> Session:
        session = open_session(engine)
        session.prepare("neon discs")
        session.step(frames)
        return session

    opened().close()
    with no_collection():
        before = allocated()
        first = opened()
        one = allocated()
        second = opened()
        two = allocated()
        buffers = sum(tensor.untyped_storage().nbytes() for tensor in second.buffers.values())
        slack = 512 * len(second.buffers)  # the allocator's rounding
        assert buffers <= two - one <= buffers + slack
        assert two - one == one - before
        second.close()
        assert allocated() == one
        first.close()
        assert allocated() == before
        weights = sum(weight.untyped_storage().nbytes() for weight in engine.weights.values())
        engine.close()
        assert allocated() <= before - weights


# Prompts beside the stream


class Gated(TextEncoder):
    """Encodes hashed words, each prompt once its gate is opened; "broken" cannot be encoded."""

    def __init__(self, text_len: int, text_dim: int) -> None:
        self._words = HashedWords(text_len, text_dim)
        self.gates = {name: threading.Event() for name in ("lava", "ice", "broken")}
        self.threads: set[int] = set()

    def encode(self, prompt: str) -> Tensor:
        self.threads.add(threading.get_ident())
        if prompt in self.gates:
            assert self.gates[prompt].wait(60)
        if prompt == "broken":
            raise TextEncoderError("the text encoder is broken")
        return self._words.encode(prompt)


@pytest.fixture
def gated(engine: Engine) -> Gated:
    """The engine's encoder, which takes its time."""
    _, text_len, text_dim = engine.manifest.buffers["prompt_embeds"].shape
    engine.prompts.close()
    engine.prompts = Prompts(
        TextSpec(kind="umt5"), text_len, text_dim, None, engine.device, cached=False
    )
    encoder = Gated(text_len, text_dim)
    engine.prompts._encoder = encoder
    assert not engine.prompts.instant
    return encoder


def switched(engine: Engine, clip: list[np.ndarray], *changes: tuple[int, str]) -> list[np.ndarray]:
    """Return what a stream of "neon discs" gives whose prompt changes before given AR steps."""
    embeds = HashedWords(*engine.manifest.buffers["prompt_embeds"].shape[1:])
    with open_session(engine) as session, torch.inference_mode():
        session.prepare("neon discs")
        made = []
        for index, chunk in enumerate(clip):
            for prompt in (prompt for at, prompt in changes if at == index):
                session.steps.set_condition("prompt", embeds.encode(prompt))
            made.append(session.step(chunk).copy())
    return made


def finish(future: "Future[Tensor]", encoder: Gated, prompt: str) -> None:
    encoder.gates[prompt].set()
    future.exception(60)


def test_frames_go_on_with_the_old_prompt_until_the_new_one_is_there(engine, gated, clip) -> None:
    expected = switched(engine, clip, (5, "lava"))
    assert not equal(expected, switched(engine, clip))
    with open_session(engine) as session:
        session.prepare("neon discs")
        made = run(session, clip[:2])
        encoded = session.set_prompt("lava")
        made += run(session, clip[2:5])
        assert not encoded.done()
        finish(encoded, gated, "lava")
        made += run(session, clip[5:])
    assert equal(made, expected)
    assert len(gated.threads) == 1 and threading.get_ident() not in gated.threads


def test_the_last_of_several_prompts_holds(engine, gated, clip) -> None:
    """The first is encoded too, but nobody asks for it any more."""
    expected = switched(engine, clip, (4, "ice"))
    with open_session(engine) as session:
        session.prepare("neon discs")
        made = run(session, clip[:2])
        first, second = session.set_prompt("lava"), session.set_prompt("ice")
        finish(first, gated, "lava")
        made += run(session, clip[2:4])
        finish(second, gated, "ice")
        made += run(session, clip[4:])
    assert equal(made, expected)


def test_a_prompt_that_cannot_be_encoded_leaves_the_old_one(engine, gated, clip) -> None:
    expected = switched(engine, clip, (6, "ice"))
    with open_session(engine) as session:
        session.prepare("neon discs")
        made = run(session, clip[:2])
        encoded = session.set_prompt("broken")
        finish(encoded, gated, "broken")
        made += run(session, clip[2:4])
        with pytest.raises(TextEncoderError, match="is broken"):
            encoded.result()
        with pytest.raises(TextEncoderError, match="is broken"):
            session.prepare("broken")  # nor does this end the stream that there is
        made += run(session, clip[4:6])
        finish(session.set_prompt("ice"), gated, "ice")
        made += run(session, clip[6:])
    assert equal(made, expected)


def test_a_new_stream_forgets_the_prompt_that_was_coming(engine, gated, clip) -> None:
    expected = switched(engine, clip)
    with open_session(engine) as session:
        session.prepare("neon discs")
        session.step(clip[0])
        encoded = session.set_prompt("lava")
        gated.gates["lava"].set()  # the worker takes prompts in turn
        session.prepare("neon discs")
        assert encoded.done()
        assert equal(run(session, clip), expected)


def test_a_prompt_is_that_of_its_session_only(engine, gated, clip) -> None:
    expected = switched(engine, clip)
    with open_session(engine) as one, open_session(engine) as two:
        for session in (one, two):
            session.prepare("neon discs")
        finish(one.set_prompt("lava"), gated, "lava")
        assert not equal(run(one, clip), expected)
        assert equal(run(two, clip), expected)


def test_hashed_words_hold_from_the_next_step_on_every_time(engine: Engine, clip) -> None:
    """Instant, so that the same calls give the same frames."""
    expected = switched(engine, clip, (3, "lava"), (5, "ice"))
    assert engine.prompts.instant
    for _ in range(3):
        with open_session(engine) as session:
            session.prepare("neon discs")
            made = run(session, clip[:3])
            assert session.set_prompt("lava").done()
            made += run(session, clip[3:5])
            session.set_prompt("broken")  # a word like any other, and replaced before it is used
            session.set_prompt("ice")
            assert equal([*made, *run(session, clip[5:])], expected)
