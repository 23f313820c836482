"""Text encoders: a prompt to the rows that cross-attention sees."""

import html
import zlib
from typing import Protocol, Self

import torch
from torch import Tensor

from sdrt.kernels.errors import SdrtError


class TextEncoderError(SdrtError):
    """A text encoder that cannot be used: its files, its device, or memory that is too small."""


class TextEncoder(Protocol):
    """Turns prompts into rows. Also a context manager, which closes it."""

    def encode(self, prompt: str) -> Tensor:
        """Return ``[1, text_len, text_dim]`` float32; the rows past the prompt are zeros."""
        ...

    def close(self) -> None:
        """Free what the encoder holds; it cannot encode afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HashedWords(TextEncoder):
    """One fixed random row a word, for small models that know words only by their hash."""

    def __init__(self, text_len: int, text_dim: int) -> None:
        """Fix the sizes: up to ``text_len`` words, rows of ``text_dim``."""
        self.text_len = text_len
        self.text_dim = text_dim

    def encode(self, prompt: str) -> Tensor:
        """Encode the words between white space, without regard to case, on the CPU.

        A word's row is drawn from a normal distribution with the CRC-32 of its UTF-8 bytes as the
        seed. Words past ``text_len`` are left out.
        """
        rows = torch.zeros(1, self.text_len, self.text_dim)
        for row, word in zip(rows[0], prompt.lower().split(), strict=False):
            generator = torch.Generator().manual_seed(zlib.crc32(word.encode("utf-8")))
            row.copy_(torch.randn(self.text_dim, generator=generator))
        return rows


def clean(prompt: str) -> str:
    """Resolve HTML entities, escaped twice too, and collapse white space, as Wan does."""
    return " ".join(html.unescape(html.unescape(prompt)).split())
