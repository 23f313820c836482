"""UMT5 under Wan's names: the mapping, and the model it gives, against the reference's case."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sdrt.engine.weights.umt5 import (
    Umt5Config,
    Umt5Error,
    umt5_from_public,
    umt5_public_shapes,
    umt5_transformers_config,
)
from sdrt.runtime.text.umt5 import load_umt5

TOLERANCE = 1e-4
"""Relative; what the golden cases allow between CPUs and torch versions in float32."""

SIZES = Umt5Config(vocab_size=128, dim=64, dim_attn=64, dim_ffn=96, num_heads=4, num_layers=3)


def test_names_and_shapes_are_the_public_ones(golden) -> None:
    _, about = golden("umt5")
    expected = {name: tuple(shape) for name, shape in about["parameters"].items()}
    assert umt5_public_shapes(SIZES) == expected


def test_defaults_are_the_sizes_of_the_xxl_encoder() -> None:
    """5.68 billion parameters, as published for Wan's text encoder."""
    shapes = umt5_public_shapes(Umt5Config()).values()
    assert sum(torch.Size(shape).numel() for shape in shapes) == 5_680_910_336


def test_encoder_is_the_reference(golden, recipe, relative_error, tmp_path) -> None:
    """Rows of both prompts, and those past the shorter one, which the reference leaves."""
    tensors, about = golden("umt5")
    public = recipe.synthetic_state_dict(about["parameters"], about["seed"])
    save_file(dict(umt5_from_public(public)), tmp_path / "model.safetensors")
    config = json.dumps(umt5_transformers_config(SIZES))
    (tmp_path / "config.json").write_text(config)
    model = load_umt5(tmp_path, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        out = model(input_ids=tensors["ids"], attention_mask=tensors["mask"])
    assert relative_error(out.last_hidden_state, tensors["hidden"]) <= TOLERANCE


def test_unknown_names_are_refused() -> None:
    with pytest.raises(Umt5Error, match=r"decoder\.norm\.weight is unknown"):
        dict(umt5_from_public({"decoder.norm.weight": torch.zeros(1)}))
