"""The cache of embeddings: bits come back, and whatever else lies there counts as absent."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdrt.runtime.directory.contents import FileSpec, TextSpec
from sdrt.runtime.text import cache as cache_module
from sdrt.runtime.text.cache import PromptCache, encoder_hash

TEXT_LEN, TEXT_DIM = 6, 8


def open_cache(folder: Path, encoder: str = "encoder") -> PromptCache:
    return PromptCache(folder / "prompts", encoder, TEXT_LEN, TEXT_DIM)


def embeds_of(used: int) -> torch.Tensor:
    embeds = torch.zeros(1, TEXT_LEN, TEXT_DIM)
    embeds[0, :used] = torch.randn(used, TEXT_DIM)
    return embeds


def the_file(cache: PromptCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


@pytest.mark.parametrize("used", [0, 1, 4, TEXT_LEN])
def test_rows_come_back_bit_by_bit(tmp_path: Path, used: int) -> None:
    """The zeros at the end are not stored; one in the middle, or a negative one, is."""
    cache, embeds = open_cache(tmp_path), embeds_of(used)
    if used == 4:
        embeds[0, 1], embeds[0, 3] = 0.0, -0.0
    cache.store("neon discs", embeds)
    rows = cache.load("neon discs")
    assert rows is not None and rows.shape == (used, TEXT_DIM)
    assert torch.equal(rows.view(torch.int32), embeds[0, :used].view(torch.int32))
    assert the_file(cache).stat().st_size < 400 + used * TEXT_DIM * 4


def test_a_prompt_is_known_by_its_cleaned_text(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.store("a  cat &amp; snow\n", embeds_of(2))
    assert cache.load(" a cat & snow") is not None
    assert cache.load("A cat & snow") is None
    assert open_cache(tmp_path, "another").load("a cat & snow") is None
    cache.forget("a cat &amp; snow")
    assert cache.load("a cat & snow") is None
    cache.forget("a cat &amp; snow")


def test_an_encoder_is_known_by_all_that_its_rows_depend_on() -> None:
    file = FileSpec(file="text/model-00000.safetensors", sha256="0" * 64, bytes=1)
    changed = file.model_copy(update={"sha256": "1" * 64})
    spec = TextSpec(kind="umt5", files=(file,))
    hashes = [
        encoder_hash(spec, 512, "cuda"),
        encoder_hash(spec, 256, "cuda"),
        encoder_hash(spec, 512, "cpu"),
        encoder_hash(spec.model_copy(update={"tokenizer": "hashed"}), 512, "cuda"),
        encoder_hash(spec.model_copy(update={"files": (changed,)}), 512, "cuda"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert encoder_hash(spec, 512, "cuda") == hashes[0]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "garbage", "folder", "foreign"])
def test_what_is_damaged_counts_as_absent(tmp_path: Path, damage: str) -> None:
    """And is written anew; only a folder in the way stays."""
    cache = open_cache(tmp_path)
    cache.store("neon discs", embeds_of(3))
    path = the_file(cache)
    data = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "foreign":
        cache.store("lava", embeds_of(3))
        (other,) = set(cache.folder.iterdir()) - {path}
        shutil.copyfile(other, path)
    else:
        flipped = bytearray(data)
        flipped[-5] ^= 1
        path.write_bytes(
            {"empty": b"", "cut": data[:-4], "flipped": flipped, "garbage": b"x" * 500}[damage]
        )
    assert cache.load("neon discs") is None
    cache.store("neon discs", embeds_of(3))
    assert (cache.load("neon discs") is None) == (damage == "folder")
    assert not list(cache.folder.glob("*.new"))


@pytest.mark.parametrize("change", ["dtype", "width", "rows"])
def test_rows_of_another_kind_count_as_absent(tmp_path: Path, change: str) -> None:
    cache = open_cache(tmp_path)
    cache.store("neon discs", embeds_of(3))
    path = the_file(cache)
    rows = load_file(path)["rows"]
    rows = {
        "dtype": rows.half(),
        "width": rows[:, :4].contiguous(),
        "rows": torch.ones(TEXT_LEN + 1, TEXT_DIM),
    }[change]
    save_file({"rows": rows}, path)
    assert cache.load("neon discs") is None


@pytest.mark.parametrize("obstacle", ["no parent", "a file"])
def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, obstacle: str) -> None:
    """No parent: ``build-engines --force`` has just moved the engine away, and needs the place."""
    if obstacle == "a file":
        (tmp_path / "prompts").write_text("")
    folder = tmp_path / "gone" if obstacle == "no parent" else tmp_path
    cache = open_cache(folder)
    cache.store("neon discs", embeds_of(3))
    assert cache.load("neon discs") is None
    assert not (tmp_path / "gone").exists()


def test_a_read_only_folder_is_no_error(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    cache = open_cache(tmp_path)
    monkeypatch.setattr(os, "replace", refuse)
    cache.store("neon discs", embeds_of(3))
    assert cache.load("neon discs") is None and not list(cache.folder.iterdir())


def test_the_oldest_entries_go(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "MOST_ENTRIES", 3)
    cache = open_cache(tmp_path)
    for age, prompt in enumerate("abcde"):
        cache.store(prompt, embeds_of(1))
        newest = max(cache.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (age, age))
    assert [prompt for prompt in "abcde" if cache.load(prompt) is not None] == ["c", "d", "e"]
