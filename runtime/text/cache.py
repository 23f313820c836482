"""Embeddings of prompts on the disk, so that a prompt that was seen before needs no encoder."""

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdrt.runtime.directory.contents import TextSpec
from sdrt.runtime.text.encoder import clean

MOST_ENTRIES = 1000
"""Files that are kept; the oldest go first."""


class PromptCache:
    """A folder of embeddings, a file each, named by a hash of the encoder and the prompt.

    It only saves time: what cannot be read counts as absent, and what cannot be written is left.
    """

    def __init__(self, folder: Path, encoder: str, text_len: int, text_dim: int) -> None:
        """Name the folder, which is made when the first embedding is stored.

        Args:
            encoder: what :func:`encoder_hash` returns; other encoders' files are not seen.
            text_len: rows of an embedding.
            text_dim: their width.
        """
        self.folder = folder
        self._encoder = encoder
        self._text_len, self._text_dim = text_len, text_dim

    def load(self, prompt: str) -> Tensor | None:
        """Return the embedding's rows up to the last that is not zero, float32 ``[n, text_dim]``.

        None where there are none, or what is there is damaged or somebody else's.
        """
        key = self._key(prompt)
        try:
            with safe_open(self._path(key), framework="pt", device="cpu") as file:
                about, rows = file.metadata() or {}, file.get_tensor("rows").clone()
        except (OSError, SafetensorError):
            return None
        fits = rows.dtype == torch.float32 and rows.ndim == 2
        fits = fits and rows.shape[0] <= self._text_len and rows.shape[1] == self._text_dim
        if not fits or about != {"key": key, "sha256": _digest(rows)}:
            return None
        return rows

    def store(self, prompt: str, embeds: Tensor) -> None:
        """Write an embedding, float32 ``[1, text_len, text_dim]`` on the host."""
        # Compared as bits: a negative zero is no zero that could be left out.
        used = embeds[0].view(torch.int32).any(dim=1).nonzero()
        rows = embeds[0, : int(used[-1]) + 1 if len(used) else 0].contiguous()
        key = self._key(prompt)
        path = self._path(key)
        new = path.with_name(f"{key}.{os.getpid()}-{threading.get_ident()}.new")
        data = save({"rows": rows}, {"key": key, "sha256": _digest(rows)})
        try:
            # Not its parents: a build may be putting a new engine in the old one's place.
            self.folder.mkdir(exist_ok=True)
            try:
                new.write_bytes(data)
                os.replace(new, path)
            finally:
                new.unlink(missing_ok=True)
            self._remove_oldest()
        except OSError:
            return

    def forget(self, prompt: str) -> None:
        """Remove a prompt's embedding, if it is there."""
        with contextlib.suppress(OSError):
            self._path(self._key(prompt)).unlink()

    def _remove_oldest(self) -> None:
        """Keep the folder small; what a process left half written ages like the rest."""
        with os.scandir(self.folder) as found:
            entries = sorted(found, key=lambda entry: entry.stat().st_mtime_ns)
        for entry in entries[:-MOST_ENTRIES]:
            os.unlink(entry)

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{self._encoder}\n{clean(prompt)}".encode()).hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def encoder_hash(spec: TextSpec, text_len: int, device_type: str) -> str:
    """Return a hash of all that an embedding depends on besides the prompt.

    Args:
        device_type: where the encoder runs; the last bits differ between CPU and GPU.
    """
    files = sorted((file.file, file.sha256) for file in spec.files)
    parts = [spec.kind, spec.tokenizer, files, text_len, device_type]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()
