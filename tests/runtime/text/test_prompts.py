"""An engine's prompts: one load for many, in order, from several threads, and from the disk."""

import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sdrt.runtime.directory.contents import TextSpec
from sdrt.runtime.text import prompts as prompts_module
from sdrt.runtime.text.encoder import HashedWords, TextEncoderError
from sdrt.runtime.text.prompts import Prompts
from sdrt.runtime.text.umt5 import Umt5

CPU = torch.device("cpu")


def open_prompts(engine, **options) -> Prompts:
    directory, spec, text_len, text_dim = engine
    return Prompts(spec, text_len, text_dim, directory, CPU, **options)


@pytest.fixture
def loads(monkeypatch) -> list[Umt5]:
    """Every encoder that was loaded."""
    loaded: list[Umt5] = []

    class Counted(Umt5):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            loaded.append(self)

    monkeypatch.setattr(prompts_module, "Umt5", Counted)
    return loaded


class Scripted:
    """An encoder that waits to be let on, counts what runs at once, and fails on demand."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[str] = []
        self.closed = False

    def encode(self, prompt: str) -> torch.Tensor:
        assert self.go.wait(10)
        assert torch.is_inference_mode_enabled()
        self.seen.append(prompt)
        if prompt == "bad":
            raise TextEncoderError("no such luck")
        return torch.full((1, 12, 64), float(len(self.seen)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def scripted(monkeypatch) -> Scripted:
    encoder = Scripted()
    monkeypatch.setattr(prompts_module, "Umt5", lambda *_: encoder)
    return encoder


def test_embeddings_are_the_encoders(engine) -> None:
    """The reference is the encoder by itself."""
    with open_prompts(engine, cached=False) as prompts:
        embeds = prompts.encode("neon &amp; discs")
    with Umt5(engine.directory / "text", "cpu", torch.bfloat16, 12, "hashed") as encoder:
        expected = encoder.encode("neon & discs")
    assert embeds.shape == (1, 12, 64) and embeds.dtype == torch.float32
    assert torch.equal(embeds, expected)
    assert embeds[0, 3].any() and not embeds[0, 4:].any()  # three words and the end token


def test_one_load_serves_many_prompts(engine, loads) -> None:
    with open_prompts(engine) as prompts:
        assert not prompts.loaded and not loads
        for prompt in ("neon discs", "lava", "ice"):
            prompts.encode(prompt)
        assert prompts.loaded and len(loads) == 1
    assert not prompts.loaded and not hasattr(loads[0], "model")


def test_a_released_encoder_loads_again(engine, loads) -> None:
    with open_prompts(engine) as prompts:
        prompts.encode("neon discs")
        prompts.release()
        assert not prompts.loaded and not hasattr(loads[0], "model")
        prompts.release()
        prompts.encode("neon discs")
        assert not prompts.loaded  # it was on the disk
        prompts.encode("lava")
        assert prompts.loaded and len(loads) == 2


def test_a_cached_prompt_needs_no_encoder(engine, loads) -> None:
    """The same bits as encoded, by another object, until it is forgotten."""
    with open_prompts(engine) as prompts:
        expected = prompts.encode("neon discs")
    with open_prompts(engine) as prompts:
        assert torch.equal(prompts.encode(" neon  discs "), expected)
        assert not prompts.loaded
        prompts.forget("neon discs")
        assert torch.equal(prompts.encode("neon discs"), expected)
        assert prompts.loaded
    with open_prompts(engine, cached=False) as prompts:
        prompts.encode("neon discs")
        assert prompts.loaded


def test_a_cached_prompt_does_not_import_transformers(engine) -> None:
    """In a process of its own, where UMT5's weights are not even there."""
    with open_prompts(engine) as prompts:
        prompts.encode("neon discs")
    for path in (engine.directory / "text").iterdir():
        path.unlink()
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from sdrt.runtime.directory.manifest import TextSpec\n"
        "from sdrt.runtime.text.prompts import Prompts\n"
        "spec = TextSpec.model_validate_json(sys.argv[1])\n"
        "with Prompts(spec, 12, 64, Path(sys.argv[2]), torch.device('cpu')) as prompts:\n"
        "    print(prompts.encode('neon discs').any().item(), 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, engine.spec.model_dump_json(), str(engine.directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr


def test_prompts_are_encoded_in_order_and_nobody_waits(engine, scripted) -> None:
    with open_prompts(engine) as prompts:
        waiting = [prompts.submit(prompt) for prompt in "abcd"]
        assert not any(future.done() for future in waiting)  # submit has returned all the same
        scripted.go.set()
        assert [float(future.result()[0, 0, 0]) for future in waiting] == [1.0, 2.0, 3.0, 4.0]
    assert scripted.seen == list("abcd") and scripted.closed


def test_threads_share_one_encoder(engine, loads) -> None:
    """Each gets the embedding of its own prompt, as one after another would."""
    words = ["neon", "lava", "ice", "gold", "ocean", "forest"]
    with open_prompts(engine, cached=False) as prompts:
        with ThreadPoolExecutor(len(words)) as pool:
            found = list(pool.map(prompts.encode, words))
        assert len(loads) == 1
        for word, embeds in zip(words, found, strict=True):
            assert torch.equal(embeds, prompts.encode(word))


def test_errors_come_through_the_future(engine, scripted) -> None:
    """The next prompt is encoded as if nothing had been."""
    scripted.go.set()
    with open_prompts(engine) as prompts:
        bad, good = prompts.submit("bad"), prompts.submit("good")
        with pytest.raises(TextEncoderError, match="no such luck"):
            bad.result()
        assert good.result().any()


def test_too_little_memory_is_one_line(engine, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB …")

    monkeypatch.setattr(prompts_module, "Umt5", refuse)
    with open_prompts(engine) as prompts, pytest.raises(TextEncoderError) as caught:
        prompts.encode("neon discs")
    assert "--text-encoder cpu" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__context__ is None  # it would hold what was loaded


@pytest.mark.parametrize("name", ["model-00000.safetensors", "config.json"])
def test_a_changed_file_is_refused_when_it_is_loaded(engine, name) -> None:
    """Its hash explains it, whatever the loader made of it."""
    path: Path = engine.directory / "text" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    with open_prompts(engine) as prompts:
        with pytest.raises(TextEncoderError, match=rf"{name}: SHA-256 .* build the engines again"):
            prompts.encode("neon discs")
        assert not prompts.loaded


def test_hashed_words_are_not_cached(tmp_path: Path) -> None:
    with Prompts(TextSpec(kind="hashed-words"), 4, 8, tmp_path, CPU) as prompts:
        assert torch.equal(prompts.encode("neon discs"), HashedWords(4, 8).encode("neon discs"))
        assert not prompts.loaded
    assert not list(tmp_path.iterdir())


def test_closing_cancels_what_waits(engine, scripted) -> None:
    """The prompt in work is waited for; later ones are refused."""
    prompts = open_prompts(engine)
    first, second = prompts.submit("a"), prompts.submit("b")
    while not first.running():
        pass
    closing: Future[None] = ThreadPoolExecutor(1).submit(prompts.close)
    while not second.cancelled():
        pass
    scripted.go.set()
    closing.result()
    assert first.result().any() and scripted.closed
    with pytest.raises(TextEncoderError, match="engine is closed"):
        prompts.submit("c")
    prompts.release()
    prompts.close()


@pytest.mark.parametrize("place", [None, "cpu"])
def test_the_encoder_lives_where_it_is_told(engine, loads, place) -> None:
    with open_prompts(engine, text_encoder=place) as prompts:
        prompts.encode("neon discs")
        assert loads[0].device == CPU


def test_another_kind_of_device_is_refused(engine) -> None:
    with pytest.raises(TextEncoderError, match="on cuda: the engine runs on cpu; expected cpu"):
        open_prompts(engine, text_encoder="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("place", [None, "cpu"])
def test_nothing_else_on_the_device_is_waited_for(engine, place) -> None:
    """Encoding ends while the default stream and another one are held up."""
    directory, spec, text_len, text_dim = engine
    device = torch.device("cuda")
    held = [torch.cuda.default_stream(), torch.cuda.Stream()]
    with Prompts(spec, text_len, text_dim, directory, device, place, cached=False) as prompts:
        prompts.encode("warm up")
        for stream in held:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10**10)
        embeds = prompts.encode("neon discs")
        assert not any(stream.query() for stream in held)
        assert embeds.is_pinned() and embeds[0, 2].any()
        torch.cuda.synchronize()
