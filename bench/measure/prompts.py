"""Changing the prompt while a stream goes on: how long encoding takes, and whether frames wait."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.stream import MAX_FILLING, PROMPT, WARM_STEPS, Streamer
from sdrt.runtime.text.prompts import Prompts

HASHED, LOADING, KEPT, CACHED = "hashed words", "encoder loads", "encoder kept", "cached on disk"
"""What a change of the prompt finds."""

LOADS = 2
"""Changes that load the encoder: the first imports its libraries, too."""

AFTER = 3
"""AR steps that are watched once a prompt is encoded: the first of them takes it over."""


class Change(Protocol):
    """What ``set_prompt`` returns."""

    def result(self) -> object:
        """Wait until the prompt is encoded."""
        ...


class PromptedStreamer(Streamer, Protocol):
    """A session, whose prompt can change."""

    def set_prompt(self, prompt: str) -> Change: ...


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    steps: int
    """AR steps without a change."""
    changes: int
    """Changes of the prompt that load nothing, of each kind."""


def text_encoder_state(prompts: Prompts) -> str:
    """Return in words what encoded the prompts so far."""
    if prompts.spec.kind == "hashed-words":
        return "hashed words"
    return f"{_size(prompts)}, loaded" if prompts.loaded else "not needed: cached"


def measure_prompts(
    prompts: Prompts, session: PromptedStreamer, source: ChunkSource, ahead: int, amount: Amount
) -> dict[str, Any]:
    """Change the prompt of a steady stream; return times in ms, by what each change found.

    The prompts that it changes to are forgotten afterwards, and the encoder is freed.

    Args:
        ahead: AR steps that are submitted before the one awaited.
    """
    stream = _Steps(session, source, ahead)
    stream.until_steady()
    quiet = [stream.gap_ms() for _ in range(amount.steps)]
    hashed = prompts.spec.kind == "hashed-words"
    texts = [f"{PROMPT}, take {index}" for index in range(max(LOADS, amount.changes))]

    def unload(text: str) -> None:
        prompts.forget(text)
        prompts.release()

    try:
        if hashed:
            changes = [_change(HASHED, stream, texts[: amount.changes])]
        else:
            changes = [
                _change(LOADING, stream, texts[:LOADS], unload),
                _change(KEPT, stream, texts[: amount.changes], prompts.forget),
                _change(CACHED, stream, texts[: amount.changes]),
            ]
    finally:
        stream.end()
        for text in texts:
            prompts.forget(text)
        prompts.release()
    return {
        "text_encoder": HASHED if hashed else _size(prompts),
        "interval_ms": median(quiet),
        "longest_interval_ms": max(quiet),
        "changes": changes,
    }


def _change(
    kind: str,
    stream: "_Steps",
    texts: list[str],
    before: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Change the prompt to each text in turn; ``before`` makes it what ``kind`` says."""
    encode_ms, longest_ms = [], []
    with ThreadPoolExecutor(1) as waiter:
        for text in texts:
            before(text)
            stream.gap_ms()  # freeing memory stops the device
            begin = time.perf_counter()
            change = stream.session.set_prompt(text)
            encoded = waiter.submit(_when_done, change)
            gaps = []
            while not encoded.done():
                gaps.append(stream.gap_ms())
            gaps += [stream.gap_ms() for _ in range(AFTER)]
            encode_ms.append((encoded.result() - begin) * 1e3)
            longest_ms.append(max(gaps))
    return {"kind": kind, "encode_ms": encode_ms, "longest_interval_ms": longest_ms}


def _when_done(change: Change) -> float:
    change.result()
    return time.perf_counter()


class _Steps:
    """The AR steps of a session, one after another, and the time between their chunks."""

    def __init__(self, session: PromptedStreamer, source: ChunkSource, ahead: int) -> None:
        self.session, self._source, self._ahead = session, source, ahead
        session.prepare(PROMPT, seed=0)
        for _ in range(ahead):
            self._submit()
        self._steady = False
        self._last = time.perf_counter()

    def until_steady(self) -> None:
        """Go on until the window is full and warm."""
        for _ in range(MAX_FILLING):
            if self._steady:
                break
            self.gap_ms()
        else:
            raise RuntimeError(f"the window is not full after {MAX_FILLING} AR steps")
        for _ in range(WARM_STEPS):
            self.gap_ms()

    def gap_ms(self) -> float:
        """Submit an AR step, wait for a chunk; return the time since the chunk before it."""
        self._submit()
        self._steady = self.session.receive().steady
        before, self._last = self._last, time.perf_counter()
        return (self._last - before) * 1e3

    def end(self) -> None:
        """Receive what is in flight."""
        for _ in range(self._ahead):
            self.session.receive()

    def _submit(self) -> None:
        self.session.submit(self._source.take(self.session.chunk_frames()))


def _size(prompts: Prompts) -> str:
    gib = sum(file.bytes for file in prompts.spec.files) / 2**30
    return f"{prompts.spec.kind}, {gib:.1f} GiB"
