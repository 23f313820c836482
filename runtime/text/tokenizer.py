"""Tokenizers of UMT5: the one that lies beside its weights, and a stand-in for weights of noise."""

import zlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sdrt.runtime.text.encoder import TextEncoderError

END = 1
"""UMT5's token after a prompt."""

SPECIAL = 3
"""UMT5's first tokens, which are no words: padding, end, unknown."""


class Tokenizer(Protocol):
    """Cuts a prompt into tokens."""

    def __call__(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Return ids and mask, int64 ``[1, text_len]``; the mask is 0 where there is padding."""
        ...


class FileTokenizer:
    """The tokenizer of a folder, loaded by transformers."""

    def __init__(self, folder: Path, text_len: int) -> None:
        """Load the tokenizer; nothing is downloaded.

        Raises:
            TextEncoderError: its files are missing or damaged.
        """
        # Slow to import, and not needed where no UMT5 runs.
        from transformers import AutoTokenizer

        self.text_len = text_len
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise TextEncoderError(
                f"text encoder {folder}: the tokenizer cannot be loaded: {reason}"
            ) from error

    def __call__(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Cut a prompt into at most ``text_len`` tokens, the end token included."""
        tokens = self._tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            return_tensors="pt",
        )
        return tokens["input_ids"], tokens["attention_mask"]


class HashedTokenizer:
    """One token a word, by its hash: enough where only the time counts."""

    def __init__(self, vocab_size: int, text_len: int) -> None:
        """Fix the number of tokens that there are, and of those of a prompt at most."""
        self.vocab_size = vocab_size
        self.text_len = text_len

    def __call__(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Turn words into tokens by the CRC-32 of their UTF-8 bytes; the end token follows."""
        words = prompt.split()[: self.text_len - 1]
        found = [SPECIAL + zlib.crc32(w.encode()) % (self.vocab_size - SPECIAL) for w in words]
        tokens = torch.zeros(2, 1, self.text_len, dtype=torch.int64)
        tokens[0, 0, : len(words) + 1] = torch.tensor([*found, END])
        tokens[1, 0, : len(words) + 1] = 1
        return tokens[0], tokens[1]
