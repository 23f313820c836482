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
    UMT5_XXL,
    Umt5Config,
    umt5_from_public,
    umt5_public_shapes,
    umt5_transformers_config,
)
from sdrt.export.disk import save_tensors
from sdrt.runtime.directory.contents import FileSpec, TextSpec
from sdrt.runtime.directory.manifest import describe_file

SHARD_BYTES = 1 << 30
"""Shards let a loader hash and read a large model in parallel."""


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> tuple[FileSpec, ...]:
    """Write tensors to ``weights/*.safetensors`` of an engine directory; return the files."""
    return _write_shards(folder, "weights/", tensors)


def write_text_encoder(
    folder: Path,
    preset: Preset,
    source: Source,
    device: torch.device | str = "cpu",
    config: Umt5Config = UMT5_XXL,
) -> TextSpec:
    """Write what turns prompts into embeddings.

    Synthetic weights come with hashed words, unless UMT5's were asked for by name: those are
    noise of full size, with a tokenizer that hashes words.

    Args:
        device: draws the noise; a GPU is many times faster.
        config: UMT5's sizes.
    Raises:
        WeightsError: the source has no UMT5 or no tokenizer.
    """
    if preset.text == "hashed-words" or not source.has_text_encoder:
        return TextSpec(kind="hashed-words")
    tokenizer = source.tokenizer_folder()
    tensors = source.load(
        "umt5",
        umt5_public_shapes(config),
        device=device if tokenizer is None else "cpu",
        dtype=torch.bfloat16,
    )
    files = _write_shards(folder, "text/model-", umt5_from_public(tensors))
    target = folder / "text"
    (target / "config.json").write_text(json.dumps(umt5_transformers_config(config), indent=1))
    if tokenizer is not None:
        for path in filter(Path.is_file, tokenizer.iterdir()):
            shutil.copyfile(path, target / path.name)
    shards = {file.file for file in files}
    others = sorted({f"text/{path.name}" for path in target.iterdir()} - shards)
    return TextSpec(
        kind="umt5",
        files=(*(describe_file(folder, name) for name in others), *files),
        tokenizer="files" if tokenizer else "hashed",
    )


def _write_shards(
    folder: Path, prefix: str, tensors: Iterable[tuple[str, Tensor]]
) -> tuple[FileSpec, ...]:
    """Write tensors to ``<prefix>NNNNN.safetensors``, a shard in memory at a time."""
    (folder / f"{prefix}0").parent.mkdir(parents=True, exist_ok=True)
    shard: dict[str, Tensor] = {}
    size, files = 0, []

    def flush() -> None:
        nonlocal shard, size
        if shard:
            name = f"{prefix}{len(files):05d}.safetensors"
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
