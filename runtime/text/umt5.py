"""The UMT5 encoder, run by transformers over the files of an engine directory."""

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdrt.runtime.text.encoder import TextEncoder, TextEncoderError, clean
from sdrt.runtime.text.tokenizer import FileTokenizer, HashedTokenizer, Tokenizer

READERS = 4
"""Threads that read shards."""


class Umt5(TextEncoder):
    """The UMT5 encoder, run by transformers."""

    def __init__(
        self,
        folder: Path,
        device: torch.device | str,
        dtype: torch.dtype,
        text_len: int,
        tokenizer: Literal["files", "hashed"] = "files",
    ) -> None:
        """Load the model.

        Args:
            folder: holds ``config.json`` and ``model*.safetensors`` under transformers' names,
                and the tokenizer's files. Nothing is downloaded.
            device: where the model runs. The weights go there one by one, so that the memory
                never holds the model twice.
            dtype: of weights and activations. float16 is too narrow for UMT5's activations.
            text_len: rows of the result; longer prompts are cut.
            tokenizer: the folder's, or hashed words, for weights of noise.
        Raises:
            TextEncoderError: files are missing or do not fit together.
        """
        sizes = _read_config(folder)
        self.device = torch.device(device)
        self.tokenizer: Tokenizer = (
            FileTokenizer(folder, text_len)
            if tokenizer == "files"
            else HashedTokenizer(sizes["vocab_size"], text_len)
        )
        self.model = load_umt5(folder, self.device, dtype)

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Encode a prompt, HTML entities resolved and white space collapsed, on the device."""
        ids, mask = (tokens.to(self.device) for tokens in self.tokenizer(clean(prompt)))
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.float().masked_fill(mask[..., None] == 0, 0.0)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model
        gc.collect()  # modules can be part of reference cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load_umt5(folder: Path, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Return the ``UMT5EncoderModel`` of a folder, for inference (see ``Umt5``)."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config.from_dict(_read_config(folder))
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    weights = _read_weights(folder, device, dtype)
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


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise TextEncoderError(
            f"text encoder {folder}: config.json is missing; build the engines again"
        )
    return json.loads(path.read_text())


def _read_weights(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read all shards onto the device; several at once, for one core cannot keep a disk busy."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise TextEncoderError(
            f"text encoder {folder}: model.safetensors is missing; build the engines again"
        )
    # A new thread would copy on the default stream, which everything on the device waits for.
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def read(path: Path) -> dict[str, Tensor]:
        try:
            with safe_open(path, "pt", device="cpu") as file, torch.cuda.stream(stream):
                return {
                    name: file.get_tensor(name).to(device=device, dtype=dtype)
                    for name in file.keys()  # noqa: SIM118 (not a mapping)
                }
        except SafetensorError as error:
            raise TextEncoderError(
                f"text encoder {folder}: {path.name} cannot be read: {error}"
            ) from error

    weights: dict[str, Tensor] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for shard in pool.map(read, files):
            weights |= shard
    return weights
