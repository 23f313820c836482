"""The file in which ``tensorrt_rtx`` keeps what it compiled for a card."""

from pathlib import Path
from typing import Any

import torch


class JitCache:
    """What ``tensorrt_rtx`` compiled for this card, kept in the engine directory.

    Its file is keyed to library version and card; TensorRT itself checks driver and compiler, and
    starts anew where they differ. Written by the library's documentation; not executed so far.
    """

    def __init__(self, directory: Path, library: Any, device: torch.device) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        card = torch.cuda.get_device_name(device).lower().replace(" ", "-").replace("/", "-")
        name = f"{library.__name__}-{library.__version__}--sm_{major}{minor}--{card}.bin"
        self.path = directory / "jit" / name
        self._cache: Any = None
        self._stored = b""

    def attach(self, config: Any) -> None:
        """Make a context's runtime configuration use the cache; all contexts share one."""
        if not hasattr(config, "create_runtime_cache"):
            return  # full TensorRT compiles when it builds
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self.path.is_file():
                self._stored = self.path.read_bytes()
                self._cache.deserialize(self._stored)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since; a directory that cannot be written is left as it is."""
        if self._cache is None:
            return
        blob = bytes(self._cache.serialize())
        if blob == self._stored:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            scratch = self.path.with_suffix(".tmp")
            scratch.write_bytes(blob)
            scratch.rename(self.path)
        except OSError:
            return
