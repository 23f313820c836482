"""An engine: a loaded directory whose sessions share its text encoder."""

from pathlib import Path
from typing import Self

import torch

from sdrt.runtime.directory.manifest import read_manifest
from sdrt.runtime.session import Session
from sdrt.runtime.text.prompts import Prompts


class Engine:
    """A directory; for now every session of it loads packages and weights by itself."""

    def __init__(self, directory: Path, device: str | None, prompts: Prompts) -> None:
        """Take what :meth:`open` made."""
        self.prompts = prompts
        self._directory, self._device = directory, device

    @classmethod
    def open(
        cls, directory: Path, device: str | None = None, text_encoder: str | None = None
    ) -> Self:
        """Open an engine directory (see ``Session.open`` and ``Prompts``)."""
        manifest = read_manifest(directory)
        dit = manifest.preset["dit"]
        place = torch.device(device or manifest.device.type)
        sizes = (dit["text_len"], dit["text_dim"])
        return cls(
            directory, device, Prompts(manifest.text, *sizes, directory, place, text_encoder)
        )

    def session(self) -> Session:
        """Return a session that encodes its prompts here."""
        session = Session.open(self._directory, self._device)
        session.prompts.close()
        session.prompts = self.prompts
        return session

    def close(self) -> None:
        """Free the text encoder."""
        self.prompts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
