"""Text encoders: a prompt to the rows that cross-attention sees."""

import gc
import html
import json
import zlib
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.manifest import Manifest


class TextEncoderError(SdrtError):
    """A text encoder's folder that cannot be used."""


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


class Umt5(TextEncoder):
    """The UMT5 encoder, run by transformers."""

    def __init__(
        self, folder: Path, device: torch.device | str, dtype: torch.dtype, text_len: int
    ) -> None:
        """Load the model.

        Args:
            folder: holds ``config.json`` and ``model.safetensors`` under transformers' names, and
                the tokenizer's files. Nothing is downloaded.
            device: where the model runs. The weights go there one by one, so that the memory
                never holds the model twice.
            dtype: of weights and activations. float16 is too narrow for UMT5's activations.
            text_len: rows of the result; longer prompts are cut.
        Raises:
            TextEncoderError: files are missing or do not fit together.
        """
        # Slow to import, and not needed with other text encoders.
        from transformers import AutoTokenizer

        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise TextEncoderError(
                    f"text encoder {folder}: {name} is missing; build the engines again"
                )
        self.text_len = text_len
        self.device = torch.device(device)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise TextEncoderError(
                f"text encoder {folder}: the tokenizer cannot be loaded: {reason}"
            ) from error
        self.model = load_umt5(folder, self.device, dtype)

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Encode a prompt, HTML entities resolved and white space collapsed, on the device."""
        tokens = self.tokenizer(
            clean(prompt),
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens["attention_mask"]
        hidden = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return hidden.float().masked_fill(mask[..., None] == 0, 0.0)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model
        gc.collect()  # modules can be part of reference cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def clean(prompt: str) -> str:
    """Resolve HTML entities, escaped twice too, and collapse white space, as Wan does."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def load_umt5(folder: Path, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Return the ``UMT5EncoderModel`` of a folder, for inference (see ``Umt5``)."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config.from_dict(json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    try:
        with safe_open(folder / "model.safetensors", "pt", device=str(device)) as file:
            weights = {name: file.get_tensor(name).to(dtype) for name in file.keys()}
    except SafetensorError as error:
        raise TextEncoderError(
            f"text encoder {folder}: model.safetensors cannot be read: {error}"
        ) from error
    if "shared.weight" in weights:  # stored once for the two names that transformers ties
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TextEncoderError(
            f"text encoder {folder}: model.safetensors does not fit config.json: {reason}"
        ) from error
    return model.eval().requires_grad_(False)


def text_encoder(manifest: Manifest, directory: Path | None, device: torch.device) -> TextEncoder:
    """Return what makes embeddings of a prompt for an engine in ``directory``."""
    dit = manifest.preset["dit"]
    if manifest.text.kind == "hashed-words":
        return HashedWords(dit["text_len"], dit["text_dim"])
    assert directory is not None, "a umt5 engine needs its directory"
    return Umt5(directory / "text", device, torch.bfloat16, dit["text_len"])
