"""Text encoders: hashed words against their definition, UMT5 end to end from a folder."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import UMT5Config, UMT5EncoderModel

from sdrt.runtime.text.encoder import HashedWords, TextEncoderError, clean
from sdrt.runtime.text.tokenizer import HashedTokenizer
from sdrt.runtime.text.umt5 import Umt5

TOLERANCE = 1e-5
"""Relative; float32, the same model with and without padding."""

TEXT_LEN = 12
WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "in", "the", "snow", "&"]
SIZES = {
    "vocab_size": len(WORDS), "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small random model and a tokenizer of whole words, which ends prompts as UMT5's does."""
    folder = tmp_path_factory.mktemp("umt5")
    torch.manual_seed(0)
    model = UMT5EncoderModel(UMT5Config.from_dict(SIZES))
    weights = {n: w for n, w in model.state_dict().items() if n != "encoder.embed_tokens.weight"}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "umt5", **SIZES}))
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    about |= {"eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def open_umt5(folder: Path) -> Umt5:
    return Umt5(folder, "cpu", torch.float32, TEXT_LEN)


def test_hashed_words_are_their_definition() -> None:
    """Each word's row is drawn from its CRC-32, whatever stands around it; zeros follow."""
    rows = HashedWords(text_len=4, text_dim=8).encode("  Neon\ttriangles ")
    assert rows.shape == (1, 4, 8) and rows.dtype == torch.float32
    for row, word in zip(rows[0], ["neon", "triangles"], strict=False):
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode("utf-8")))
        assert torch.equal(row, torch.randn(8, generator=generator))
    assert not rows[0, 2:].any()


def test_hashed_words_past_the_length_are_left_out() -> None:
    with HashedWords(text_len=2, text_dim=8) as encoder:
        assert torch.equal(encoder.encode("ice gold lava"), encoder.encode("ice gold"))
        assert not encoder.encode("").any()


def test_prompts_are_cleaned() -> None:
    assert clean(" a  cat\n&amp;amp; the&#32;snow ") == "a cat & the snow"


def test_umt5_is_the_model_on_the_tokens(folder, relative_error) -> None:
    """The reference is transformers' own loader on the bare tokens, without padding."""
    with open_umt5(folder) as encoder:
        rows = encoder.encode(" a cat &amp; the\n snow")
    model = UMT5EncoderModel.from_pretrained(folder).eval()
    tokens = torch.tensor([[WORDS.index(word) for word in "a cat & the snow </s>".split()]])
    with torch.no_grad():
        expected = model(input_ids=tokens).last_hidden_state
    assert rows.shape == (1, TEXT_LEN, SIZES["d_model"]) and rows.dtype == torch.float32
    assert relative_error(rows[:, :6], expected) <= TOLERANCE
    assert not rows[:, 6:].any()


def test_umt5_cuts_long_prompts(folder) -> None:
    """The last row stays the end token's."""
    with open_umt5(folder) as encoder:
        rows = encoder.encode("snow " * 50)
        assert rows.shape[1] == TEXT_LEN and rows[0, -1].any()
        assert torch.equal(rows, encoder.encode("snow " * (TEXT_LEN - 1)))


def test_umt5_casts_and_shares_its_weights(folder) -> None:
    """One storage for the embedding's two names, everything in the dtype asked for."""
    with Umt5(folder, "cpu", torch.bfloat16, TEXT_LEN) as encoder:
        weights = encoder.model.state_dict()
        assert {w.dtype for w in weights.values()} == {torch.bfloat16}
        shared, tied = weights["shared.weight"], weights["encoder.embed_tokens.weight"]
        assert shared.data_ptr() == tied.data_ptr()
        assert encoder.encode("a cat").dtype == torch.float32
    assert not hasattr(encoder, "model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(folder, tmp_path, name) -> None:
    for file in folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(TextEncoderError, match=f"{name} is missing"):
        open_umt5(tmp_path)


def test_a_missing_tokenizer_is_named(folder, tmp_path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(TextEncoderError, match="tokenizer cannot be loaded"):
        open_umt5(tmp_path)


@pytest.mark.parametrize("change", ["cut", "renamed"])
def test_weights_that_do_not_fit_are_refused(folder, tmp_path, change) -> None:
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).symlink_to(file)
    path = tmp_path / "model.safetensors"
    if change == "cut":
        path.write_bytes((folder / path.name).read_bytes()[:-100])
    else:
        weights = load_file(folder / path.name)
        save_file({f"model.{name}": weight for name, weight in weights.items()}, path)
    message = "cannot be read" if change == "cut" else "does not fit config.json"
    with pytest.raises(TextEncoderError, match=message):
        open_umt5(tmp_path)


def test_hashed_tokens_are_words_and_an_end() -> None:
    """Ids are below the size of the vocabulary, none is special, and long prompts are cut."""
    tokenize = HashedTokenizer(vocab_size=20, text_len=6)
    ids, mask = tokenize("a cat a dog")
    assert ids.dtype == mask.dtype == torch.int64 and ids.shape == mask.shape == (1, 6)
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0]]
    words = ids[0, :4].tolist()
    assert words[0] == words[2] == 3 + zlib.crc32(b"a") % 17
    assert 3 <= min(words) and max(words) < 20
    assert ids[0, 4:].tolist() == [1, 0]
    ids, mask = tokenize("snow " * 50)
    assert ids[0, -1] == 1 and mask.all()
    assert tokenize("")[0].tolist() == [[1, 0, 0, 0, 0, 0]]


def test_shards_are_one_model(folder, tmp_path) -> None:
    """The reference is the same model in one file."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    weights = load_file(folder / "model.safetensors")
    for index in range(3):
        shard = {name: weights[name] for name in sorted(weights)[index::3]}
        save_file(shard, tmp_path / f"model-{index:05d}.safetensors")
    with open_umt5(folder) as one, open_umt5(tmp_path) as sharded:
        assert torch.equal(one.encode("a cat"), sharded.encode("a cat"))
