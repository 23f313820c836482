"""The demo: the tiny engine, built once and cached, and the clip that it is shown on."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdrt.kernels.errors import SdrtError
from sdrt.runtime.measure.stats import versions
from sdrt.runtime.video.writer import side_by_side

if TYPE_CHECKING:  # torch takes seconds to import
    from sdrt.runtime.session import Session

PRESET = "tiny"
PROMPT = "neon discs"
OUTPUT = Path("sdrt-demo.mp4")


class DemoError(SdrtError):
    """The demo's engine cannot be built."""


def open_session(device: str | None, say: Callable[[str], None], overlap: bool = True) -> "Session":
    """Open the cached tiny engine; build it first where there is none or it is refused.

    Args:
        overlap: as ``Session.open`` takes it.
    Raises:
        DemoError: the build failed.
        ManifestError, SessionError: the engine is refused although it was just built.
    """
    import torch

    from sdrt.runtime.directory.manifest import ManifestError
    from sdrt.runtime.session import Session

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    directory = engine_directory(device.partition(":")[0])
    if not directory.exists():
        say(f"building the {PRESET} engine, once, into {directory}")
        build_engine(directory, device)
    try:
        return Session.open(directory, device, overlap)
    except ManifestError as error:
        say(f"the cached engine is refused ({error}); building it again, once")
    build_engine(directory, device, again=True)
    return Session.open(directory, device, overlap)


def cache_root() -> Path:
    """Return ``$SDRT_CACHE``, or ``sdrt`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    if root := os.environ.get("SDRT_CACHE"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdrt"


def engine_directory(device: str) -> Path:
    """Return where the tiny engine for this torch, device and sdrt is cached."""
    found = versions()
    name = f"{PRESET}-torch{found['torch']}-{device}-{found['sdrt']}"
    return cache_root() / "engines" / name


def build_engine(directory: Path, device: str, again: bool = False) -> None:
    """Run the builder, which the runtime does not import, with its output shown.

    Args:
        again: replace the engine that is there.
    Raises:
        DemoError: the cache cannot be written, or the builder fails.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"cannot make the cache folder {directory.parent}: {error.strerror}; "
            "set SDRT_CACHE to a folder that can be written"
        ) from error
    command = [sys.executable, "-m", "sdrt.export.cli", "--preset", PRESET]
    command += [
        "--out",
        str(directory),
        "--device",
        device.partition(":")[0],
        *(["--force"] if again else []),
    ]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise DemoError(
            f"building the {PRESET} engine failed with exit code {done.returncode}; "
            "what the builder printed above says why"
        )


class Pairs:
    """Passes input frames on and keeps each until the output made of it is there."""

    def __init__(self, frames: Iterator[np.ndarray]) -> None:
        self._frames = frames
        self._kept: deque[np.ndarray] = deque()

    def __iter__(self) -> "Pairs":
        return self

    def __next__(self) -> np.ndarray:
        frame = next(self._frames)
        self._kept.append(frame)
        return frame

    def joined(self, made: np.ndarray) -> np.ndarray:
        """Return ``[F, H, 2W, 3]``: the next F inputs on the left, ``made`` on the right."""
        return side_by_side(np.stack([self._kept.popleft() for _ in made]), made)
