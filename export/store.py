"""Writing the data files of an engine directory: weights in shards, the text encoder's files."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from sdrt.engine.preset.preset import Preset
from sdrt.engine.weights.source import Source
from sdrt.engine.weights.umt5 import (
    Umt5Config,
    umt5_from_public,
    umt5_public_shapes,
    umt5_transformers_config,
)
from sdrt.export.disk import save_tensors
from sdrt.runtime.directory.manifest import FileSpec, TextSpec, describe_file

SHARD_BYTES = 1 << 30
"""Shards let a loader hash and read a large model in parallel."""


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> tuple[FileSpec, ...]:
    """Write tensors to ``weights/*.safetensors`` of an engine directory; return the files."""
    target = folder / "weights"
    target.mkdir(parents=True, exist_ok=True)
    shard: dict[str, Tensor] = {}
    size, files = 0, []

    def flush() -> None:
        nonlocal shard, size
        if shard:
            name = f"weights/{len(files):05d}.safetensors"
            save_tensors(shard, folder / name)
            files.append(describe_file(folder, name))
        shard, size = {}, 0

    for name, tensor in tensors:
        shard[name] = tensor.cpu().contiguous()
        size += tensor.nbytes
        if size >= SHARD_BYTES:
            flush()
    flush()
    return tuple(files)


def write_text_encoder(folder: Path, preset: Preset, source: Source) -> TextSpec:
    """Write what turns prompts into embeddings; synthetic weights come with hashed words.

    Raises:
        WeightsError: the source has no UMT5 or no tokenizer.
    """
    tokenizer = source.tokenizer_folder() if preset.text == "umt5" else None
    if tokenizer is None:
        return TextSpec(kind="hashed-words")
    target = folder / "text"
    target.mkdir(exist_ok=True)
    config = Umt5Config()
    tensors = umt5_from_public(dict(source.load("umt5", umt5_public_shapes(config))))
    converted = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_tensors(converted, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(umt5_transformers_config(config), indent=1))
    for path in sorted(tokenizer.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    names = sorted(f"text/{path.name}" for path in target.iterdir())
    return TextSpec(kind="umt5", files=tuple(describe_file(folder, name) for name in names))
