"""The text encoder of an engine directory: synthetic on request, in shards, a real one copied."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.engine.weights.synthetic import draw
from sdrt.engine.weights.umt5 import Umt5Config, umt5_from_public, umt5_public_shapes
from sdrt.export import store
from sdrt.runtime.text.umt5 import Umt5

SIZES = Umt5Config(vocab_size=128, dim=64, dim_attn=64, dim_ffn=96, num_heads=4, num_layers=3)


def write(folder: Path, weights: str, **components: str):
    preset = load("sdv2-1.3b-480p")
    source = open_source(weights, preset, components)
    assert source.synthetic == ("synthetic" in source.specs.values())
    return store.write_text_encoder(folder, preset, source, config=SIZES)


def stored(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    return {name: weight for file in names for name, weight in load_file(folder / file).items()}


def test_synthetic_weights_alone_come_with_hashed_words(tmp_path: Path) -> None:
    spec = write(tmp_path, "synthetic")
    assert spec.kind == "hashed-words" and not list(tmp_path.iterdir())


def test_synthetic_umt5_is_written_in_shards(tmp_path: Path, monkeypatch) -> None:
    """The reference is each weight drawn by its public name."""
    monkeypatch.setattr(store, "SHARD_BYTES", 30_000)
    spec = write(tmp_path, "synthetic", umt5="synthetic")
    assert (spec.kind, spec.tokenizer) == ("umt5", "hashed")
    shards = [file.file for file in spec.files if "model-" in file.file]
    assert len(shards) > 3 and shards == sorted(shards)
    assert {file.file for file in spec.files} == {*shards, "text/config.json"}
    shapes = umt5_public_shapes(SIZES)
    drawn = {name: draw(name, shapes[name], dtype=torch.bfloat16) for name in shapes}
    expected = dict(umt5_from_public(drawn))
    found = stored(tmp_path, shards)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    with Umt5(tmp_path / "text", "cpu", torch.bfloat16, 8, spec.tokenizer) as encoder:
        rows = encoder.encode("neon discs")
    assert rows[0, :3].isfinite().all() and 0.1 < float(rows[0, :3].std()) < 10


def test_a_checkpoint_comes_with_its_tokenizer(tmp_path: Path) -> None:
    checkpoint = tmp_path / "hub"
    (checkpoint / "google" / "umt5-xxl").mkdir(parents=True)
    (checkpoint / "google" / "umt5-xxl" / "spiece.model").write_text("pieces")
    shapes = umt5_public_shapes(SIZES)
    public = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(public, checkpoint / "models_t5_umt5-xxl-enc-bf16.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    spec = write(out, "synthetic", umt5=str(checkpoint))
    assert (spec.kind, spec.tokenizer) == ("umt5", "files")
    names = [file.file for file in spec.files]
    assert names == ["text/config.json", "text/spiece.model", "text/model-00000.safetensors"]
    found = stored(out, names[-1:])
    for name, weight in umt5_from_public(public):
        assert torch.equal(found[name], weight.bfloat16())
