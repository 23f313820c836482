"""The prompts of an engine: encoded on a thread and a stream of their own, and kept on disk."""

import gc
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sdrt.runtime.directory.checks import verify_hashes
from sdrt.runtime.directory.contents import TextSpec
from sdrt.runtime.directory.manifest import ManifestError
from sdrt.runtime.text.cache import PromptCache, encoder_hash
from sdrt.runtime.text.encoder import HashedWords, TextEncoder, TextEncoderError
from sdrt.runtime.text.umt5 import Umt5

CACHE_FOLDER = "prompts"
"""In an engine directory: embeddings of prompts; the manifest does not list them."""

SPARE = 2
"""Embeddings whose memory is set aside, so that none is allocated beside frames in flight."""


class Prompts:
    """Turns prompts into embeddings for all sessions of an engine; any thread may call it.

    The encoder is loaded when the first prompt needs it, and kept. Prompts are encoded in the
    order of their submission, by one thread, on a CUDA stream that only this thread waits for:
    frames in flight go on. Also a context manager, which closes it.
    """

    def __init__(
        self,
        spec: TextSpec,
        text_len: int,
        text_dim: int,
        directory: Path | None,
        device: torch.device,
        text_encoder: str | None = None,
        cached: bool = True,
    ) -> None:
        """Set up; nothing is loaded yet.

        Args:
            text_len: rows of an embedding.
            text_dim: their width.
            directory: of the engine; None does for hashed words.
            device: where the engine runs.
            text_encoder: where UMT5 lives, ``cpu`` or the engine's kind of device; None: there.
            cached: whether embeddings are kept in the engine directory; hashed words never are.
        Raises:
            TextEncoderError: ``text_encoder`` names another kind of device.
        """
        self.spec, self._directory = spec, directory
        self._text_len, self._text_dim = text_len, text_dim
        self._place = _place(device, text_encoder)
        self._cache: PromptCache | None = None
        if cached and directory is not None and spec.kind == "umt5":
            encoder = encoder_hash(spec, text_len, self._place.type)
            self._cache = PromptCache(directory / CACHE_FOLDER, encoder, text_len, text_dim)
        self._encoder: TextEncoder | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sdrt-prompts")
        with torch.cuda.stream(self._stream):
            # Page-locking memory can stop the device. The allocator keeps these for later.
            spare = [self._zeros() for _ in range(SPARE)]
        del spare

    @property
    def instant(self) -> bool:
        """Whether encoding takes no time worth speaking of."""
        return self.spec.kind == "hashed-words"

    @property
    def loaded(self) -> bool:
        """Whether the encoder's weights are in memory; never with hashed words."""
        return self._encoder is not None and self.spec.kind == "umt5"

    def submit(self, prompt: str) -> "Future[Tensor]":
        """Start to encode a prompt; what was submitted before is encoded first.

        Returns:
            A future of float32 ``[1, text_len, text_dim]`` on the host, page-locked if the engine
            runs on CUDA: complete, so that any stream may copy from it without waiting, and
            nobody else's. It raises ``TextEncoderError`` where the encoder cannot be used.
        Raises:
            TextEncoderError: this was closed.
        """
        try:
            return self._worker.submit(self._embeds, prompt)
        except RuntimeError:
            raise TextEncoderError("the engine is closed: open another one") from None

    def encode(self, prompt: str) -> Tensor:
        """Encode a prompt and wait for it (see :meth:`submit`)."""
        return self.submit(prompt).result()

    def release(self) -> None:
        """Free the encoder after what was submitted; it loads again when a prompt needs it.

        On CUDA the memory goes back to the device, which waits for the frames in flight.
        """
        try:
            self._worker.submit(self._drop).result()
        except RuntimeError:
            return  # closed: it is free already

    def forget(self, prompt: str) -> None:
        """Remove a prompt's embedding from the disk, if it is there."""
        if self._cache is not None:
            self._cache.forget(prompt)

    def close(self) -> None:
        """Free the encoder; prompts that wait are cancelled, the one in work is waited for."""
        self._worker.shutdown(cancel_futures=True)
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.inference_mode()
    def _embeds(self, prompt: str) -> Tensor:
        """Return a prompt's embedding, from the disk or the encoder; the thread's own work."""
        with torch.cuda.stream(self._stream):
            embeds = self._zeros()
            rows = self._cache.load(prompt) if self._cache else None
            if rows is not None:
                embeds[0, : len(rows)] = rows
                return embeds
            self._encode(prompt, embeds)
        if self._cache:
            self._cache.store(prompt, embeds)
        return embeds

    def _encode(self, prompt: str, embeds: Tensor) -> None:
        """Let the encoder fill ``embeds``, and wait for it alone."""
        try:
            embeds.copy_(self._load().encode(prompt), non_blocking=True)
            if self._stream is not None:
                self._stream.synchronize()
            return
        except torch.OutOfMemoryError:
            pass  # raised below: this error's traceback holds what was loaded
        gc.collect()
        torch.cuda.empty_cache()
        raise TextEncoderError(
            f"the memory of {self._place} is too small for the text encoder beside the engine; "
            "--text-encoder cpu keeps it on the host"
        )

    def _load(self) -> TextEncoder:
        """Return the encoder, loaded if it is not, the hashes of its files checked meanwhile."""
        if self._encoder is None and self.spec.kind == "hashed-words":
            self._encoder = HashedWords(self._text_len, self._text_dim)
        elif self._encoder is None:
            assert self._directory is not None, "a umt5 engine needs its directory"
            folder = self._directory / "text"
            place = (self._place, torch.bfloat16, self._text_len, self.spec.tokenizer)
            hint = "build the engines again"
            try:
                with verify_hashes(self._directory, self.spec.files, hint):
                    encoder = Umt5(folder, *place)
            except ManifestError as error:
                raise TextEncoderError(str(error)) from None
            self._encoder = encoder
        return self._encoder

    def _drop(self) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()

    def _zeros(self) -> Tensor:
        pinned = self._stream is not None
        return torch.zeros(1, self._text_len, self._text_dim, pin_memory=pinned)


def _place(device: torch.device, text_encoder: str | None) -> torch.device:
    """Return where the encoder lives."""
    if text_encoder in (None, device.type):
        return device
    if text_encoder == "cpu":
        return torch.device("cpu")
    raise TextEncoderError(
        f"text encoder on {text_encoder}: the engine runs on {device.type}; "
        f"expected {' or '.join(dict.fromkeys((device.type, 'cpu')))}"
    )
