"""Sessions over a built engine: streams, prompts, seeds, misuse, and what the process imports."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sdrt.runtime.sample_clip import sample_clip
from sdrt.runtime.session import IN_FLIGHT, Session, SessionError

CHUNKS = 9
"""AR steps of the streams here: the window of 6 latent frames is full after 6."""


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Iterator[Session]:
    with Session.open(tiny_engine) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(session: Session) -> list[np.ndarray]:
    """Input chunks ``[F, H, W, 3]``, the longer first one included."""
    first, later = session.stream.first_frames_in, session.stream.frames_in
    frames = np.stack(list(sample_clip(first + (CHUNKS - 1) * later)))
    return np.split(frames, range(first, len(frames), later))


@pytest.fixture(scope="module")
def reference(session: Session, clip: list[np.ndarray]) -> list[np.ndarray]:
    """What a stream with the prompt "neon discs" and seed 0 gives, chunk by chunk."""
    return stream(session, clip)


def stream(session: Session, clip: list[np.ndarray], prompt="neon discs", seed=0):
    session.prepare(prompt, seed)
    return [session.step(chunk).copy() for chunk in clip]


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# Streams


def test_chunks_come_when_they_are_due(session: Session, clip, reference) -> None:
    """The first chunk at once, then one AR step later than two denoise steps need."""
    sizes = [len(frames) for frames in reference]
    assert sizes == [5, 0] + [4] * (CHUNKS - 2)
    assert [len(chunk) for chunk in clip] == [8] + [4] * (CHUNKS - 1)
    assert session.stream.lookahead_frames == 3 and session.takes_frames


def test_output_follows_the_input(reference, clip) -> None:
    """Reference: the input frames; the colours are the prompt's, the layout is the input's."""
    made = np.concatenate(reference).mean(axis=-1)
    shown = np.concatenate(clip)[: len(made)].mean(axis=-1)

    def likeness(a: np.ndarray, b: np.ndarray) -> float:
        small = [x.reshape(len(x), 16, 8, 28, 8).mean(axis=(2, 4)).reshape(-1) for x in (a, b)]
        return abs(float(np.corrcoef(*small)[0, 1]))

    assert made.std() > 15
    assert likeness(made, shown) > likeness(made, shown[:, ::-1, ::-1]) + 0.1


def test_a_seed_gives_the_same_bits_again(session: Session, clip, reference) -> None:
    assert equal(stream(session, clip), reference)


def test_another_seed_gives_another_stream(session: Session, clip, reference) -> None:
    assert not np.array_equal(stream(session, clip[:1], seed=1)[0], reference[0])


def test_two_sessions_are_the_same_stream(tiny_engine: Path, session, clip, reference) -> None:
    """Interleaved: each owns its states, and closing one leaves the other alone."""
    session.prepare("neon discs")
    with Session.open(tiny_engine) as other:
        other.prepare("lava", seed=4)
        for index in range(4):
            other.step(clip[index])
            assert np.array_equal(session.step(clip[index]), reference[index])
    assert np.array_equal(session.step(clip[4]), reference[4])


def test_a_prompt_changes_the_stream_from_the_next_step_on(session, clip, reference) -> None:
    session.prepare("neon discs")
    made = [session.step(chunk).copy() for chunk in clip[:4]]
    session.set_prompt("lava")
    made += [session.step(chunk).copy() for chunk in clip[4:]]
    assert equal(made[:4], reference[:4])
    assert [len(frames) for frames in made] == [len(frames) for frames in reference]
    changed = np.concatenate(made[4:]).astype(int) - np.concatenate(reference[4:])
    assert np.abs(changed[-4:]).mean() > 5
    # It goes on from the same states: not what a new stream with that prompt would give.
    assert not np.array_equal(made[4], stream(session, clip[:5], "lava")[4])


def test_submitting_ahead_changes_nothing(session: Session, clip, reference) -> None:
    session.prepare("neon discs")
    made = []
    for index, chunk in enumerate(clip):
        session.submit(chunk)
        if index:
            made.append(session.receive().frames.copy())
    made.append(session.receive().frames.copy())
    assert equal(made, reference)


def test_drain_returns_what_is_in_the_stream(session: Session, clip, reference) -> None:
    session.prepare("neon discs")
    for chunk in clip[:2]:
        session.submit(chunk)
    drained = [chunk.frames.copy() for chunk in session.drain()]
    assert [len(frames) for frames in drained] == [5, 0, 4]
    # Row i is finished by the AR step that follows, whatever that one's input is.
    session.prepare("neon discs")
    for chunk in clip[:2]:
        session.step(chunk)
    assert np.array_equal(session.step(np.repeat(clip[1][-1:], 4, axis=0)), drained[2])
    session.prepare("neon discs")
    assert list(session.drain()) == []


def test_a_chunk_says_what_it_took(session: Session, clip) -> None:
    session.prepare("neon discs")
    chunks = []
    for frames in clip:
        session.submit(frames)
        chunks.append(session.receive())
    assert [chunk.index for chunk in chunks] == list(range(CHUNKS))
    assert [chunk.steady for chunk in chunks] == [False] * 5 + [True] * (CHUNKS - 5)
    for chunk in chunks:
        stages = dict(chunk.stages_ms)
        total = stages.pop("total_ms")
        assert list(stages) == ["encode_ms", "diffuse_ms", "decode_ms", "finalize_ms"]
        assert stages.pop("finalize_ms") >= 0
        assert total == pytest.approx(sum(stages.values()))
        assert 0 < total <= chunk.latency_ms


@pytest.mark.parametrize("kind", ["tensor", "reversed", "read-only", "sliced"])
def test_any_layout_of_frames_is_taken(session: Session, clip, reference, kind: str, recwarn):
    """Frames from other libraries: BGR turned round, views, memory of theirs."""
    frames: np.ndarray | torch.Tensor = clip[0].copy()
    if kind == "tensor":
        frames = torch.from_numpy(clip[0].copy())
    elif kind == "reversed":
        frames = clip[0][..., ::-1].copy()[..., ::-1]
    elif kind == "sliced":
        frames = np.repeat(clip[0], 2, axis=2)[:, :, ::2]
    else:
        fixed = clip[0].copy()
        fixed.flags.writeable = False
        frames = fixed
    session.prepare("neon discs")
    assert np.array_equal(session.step(frames), reference[0])
    assert not recwarn.list


# Misuse


def refused(reason: str):
    return pytest.raises(SessionError, match=reason)


def test_frames_that_do_not_fit(session: Session, clip) -> None:
    session.prepare("neon discs")
    with refused(r"frames are \(4, 128, 224, 3\) uint8, expected \(8, 128, 224, 3\) uint8"):
        session.submit(clip[1])
    with refused("float32, expected"):
        session.submit(clip[0].astype(np.float32))
    with refused("float32, expected"):
        session.submit(torch.zeros(clip[0].shape))
    with refused(r"\(8, 64, 224, 3\)"):
        session.submit(clip[0][:, ::2])
    with refused("takes 8 frames here, got none"):
        session.submit()
    with refused("nothing to receive"):  # a refused submit has started nothing
        session.receive()


def test_more_than_fits_in_flight(session: Session, clip) -> None:
    session.prepare("neon discs")
    for chunk in clip[:IN_FLIGHT]:
        session.submit(chunk)
    with refused("2 AR steps are in flight: receive one first"):
        session.submit(clip[IN_FLIGHT])
    assert [session.receive().index for _ in range(IN_FLIGHT)] == [0, 1]
    with refused("nothing to receive: submit a chunk first"):
        session.receive()


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(session: Session, clip, prompt: str) -> None:
    """Refused, and a stream that runs is not disturbed."""
    session.prepare("neon discs")
    session.step(clip[0])
    with refused("the prompt is empty"):
        session.set_prompt(prompt)
    with refused("the prompt is empty"):
        session.prepare(prompt)
    assert len(session.step(clip[1])) == 0


def test_out_of_order(tiny_engine: Path, clip) -> None:
    opened = Session.open(str(tiny_engine), "cpu")
    with refused("not prepared: call prepare"):
        opened.submit(clip[0])
    opened.prepare("neon discs")
    opened.close()
    opened.close()
    with refused("the session is closed"):
        opened.submit(clip[0])
    with refused("the session is closed"):
        opened.prepare("neon discs")


# The process


PROBE = """
import json, resource, sys
import torch
plain = set(sys.modules)
from sdrt.runtime.sample_clip import sample_clip
from sdrt.runtime.session import Session
import numpy as np

def rss_mib():
    fields = open("/proc/self/statm").read().split()
    return int(fields[1]) * resource.getpagesize() / 2**20

with Session.open(sys.argv[1]) as session:
    session.prepare("neon discs")
    frames = np.stack(list(sample_clip(8)))
    session.step(frames)
    addresses = [tensor.data_ptr() for tensor in session.buffers.values()]
    for index in range(30):
        session.step(frames[:4])
        if index == 9:
            before, modules = rss_mib(), set(sys.modules)
    print(json.dumps({
        "modules": sorted(set(sys.modules) - plain),
        "grown_mib": rss_mib() - before,
        "later": sorted(set(sys.modules) - modules),
        "moved": addresses != [tensor.data_ptr() for tensor in session.buffers.values()],
    }))
"""


def test_the_process_that_streams(tiny_engine: Path, tmp_path: Path) -> None:
    """No compiler, no model code, no new memory: the engine holds all that a stream needs."""
    environment = os.environ | {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tiny_engine)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    loaded = found["modules"]
    for unwanted in (
        "sdrt.engine",
        "sdrt.export",
        "torch._inductor",
        "torch._dynamo",
        "torch.export",
        "transformers",
    ):
        names = [m for m in loaded if m == unwanted or m.startswith(unwanted + ".")]
        assert names == [], f"{unwanted} was imported"
    assert found["later"] == []
    assert found["moved"] is False
    assert found["grown_mib"] < 8
    assert list(tmp_path.iterdir()) == []
