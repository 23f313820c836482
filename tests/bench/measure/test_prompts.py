"""Changes of the prompt, on a stream and an encoder whose times are known."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.prompts import Amount, measure_prompts, text_encoder_state
from sdrt.runtime.chunk import Chunk
from sdrt.runtime.directory.contents import FileSpec, TextSpec

STEP_S, LOAD_S, ENCODE_S = 0.005, 0.2, 0.05
XXL = FileSpec(file="text/model-00000.safetensors", sha256="", bytes=11_361_820_672)


class FakePrompts:
    """Takes known times to load and to encode, on a thread of its own."""

    def __init__(self, kind: str) -> None:
        files = (XXL,) if kind == "umt5" else ()
        self.spec = TextSpec.model_validate({"kind": kind, "files": files})
        self.loaded = False
        self.cached: set[str] = set()
        self.worker = ThreadPoolExecutor(1)

    def submit(self, prompt: str) -> Future[None]:
        return self.worker.submit(self._encode, prompt)

    def _encode(self, prompt: str) -> None:
        if self.spec.kind == "hashed-words" or prompt in self.cached:
            return
        time.sleep(ENCODE_S if self.loaded else LOAD_S)
        self.loaded = True
        self.cached.add(prompt)

    def forget(self, prompt: str) -> None:
        self.cached.discard(prompt)

    def release(self) -> None:
        self.loaded = False


class FakeSession:
    """AR steps of 5 ms, steady after 3; ``set_prompt`` may wait, as it should not."""

    device = torch.device("cpu")

    def __init__(self, prompts: FakePrompts, waits: bool) -> None:
        self.prompts, self.waits = prompts, waits
        self.submitted = self.received = 0
        self.seen: list[str] = []

    def prepare(self, prompt: str, seed: int = 0) -> None:
        self.prompts.submit(prompt).result()
        self.submitted = self.received = 0

    def set_prompt(self, prompt: str) -> Future[None]:
        self.seen.append(prompt)
        change = self.prompts.submit(prompt)
        if self.waits:
            change.result()
        return change

    def chunk_frames(self) -> int:
        return 4

    def submit(self, frames: np.ndarray | None = None) -> None:
        self.submitted += 1

    def receive(self) -> Chunk:
        time.sleep(STEP_S)
        assert self.submitted > self.received
        index, self.received = self.received, self.received + 1
        return Chunk(index, np.zeros((4, 16, 16, 3), np.uint8), {}, 5.0, index >= 3)


def measure(prompts: Any, session: Any, ahead: int = 1) -> dict[str, Any]:
    amount = Amount(steps=10, changes=3)
    return measure_prompts(prompts, session, ChunkSource(16, 16), ahead, amount)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("waits", [False, True])
def test_times_are_those_of_the_encoder_and_gaps_those_of_the_session(ahead, waits) -> None:
    """A sleep takes no less than asked for; a busy machine only adds."""
    prompts = FakePrompts("umt5")
    session = FakeSession(prompts, waits)
    found = measure(prompts, session, ahead)
    assert found["text_encoder"] == "umt5, 10.6 GiB"
    assert STEP_S * 1e3 <= found["interval_ms"] <= found["longest_interval_ms"]
    loads, kept, cached = found["changes"]
    assert [change["kind"] for change in found["changes"]] == [
        "encoder loads",
        "encoder kept",
        "cached on disk",
    ]
    assert [len(change["encode_ms"]) for change in found["changes"]] == [2, 3, 3]
    assert min(loads["encode_ms"]) >= LOAD_S * 1e3
    assert ENCODE_S * 1e3 <= min(kept["encode_ms"]) < LOAD_S * 1e3
    assert min(cached["encode_ms"]) < ENCODE_S * 1e3
    assert (min(loads["longest_interval_ms"]) >= LOAD_S * 1e3) == waits
    assert session.submitted == session.received
    assert not prompts.loaded and prompts.cached == {"neon discs"}  # of prepare


def test_hashed_words_have_one_kind_of_change() -> None:
    prompts = FakePrompts("hashed-words")
    session = FakeSession(prompts, waits=False)
    found = measure(prompts, session)
    assert found["text_encoder"] == "hashed words"
    assert [change["kind"] for change in found["changes"]] == ["hashed words"]
    assert len(session.seen) == len(set(session.seen)) == 3


def test_the_encoders_state_is_told() -> None:
    fake: Any = FakePrompts("umt5")
    assert text_encoder_state(fake) == "not needed: cached"
    fake.loaded = True
    assert text_encoder_state(fake) == "umt5, 10.6 GiB, loaded"
    words: Any = FakePrompts("hashed-words")
    assert text_encoder_state(words) == "hashed words"
