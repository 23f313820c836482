"""The demo: the tiny engine, built once and cached, and the clip that it is shown on."""

import math
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
CLIP_FRAMES = 97
SHAPES = ("disc", "square", "triangle", "stripes")
COLOURS = np.array(
    [
        *((0.52, 0.13, 0.10), (0.95, 0.90, 0.74), (0.16, 0.30, 0.16), (0.93, 0.88, 0.78)),
        *((0.16, 0.14, 0.16), (0.30, 0.20, 0.12), (0.86, 0.76, 0.34), (0.18, 0.22, 0.28)),
    ]
)
"""Earth and stone: far from most palettes that a prompt can name, so that the change shows."""


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


def sample_clip(
    frames: int = CLIP_FRAMES, height: int = 128, width: int = 224, seed: int = 7
) -> Iterator[np.ndarray]:
    """Yield a procedural clip: shapes that cross a gradient under a camera that pans and zooms.

    The tiny model was trained on clips of this kind. The same arguments give the same frames.

    Returns:
        Uint8 RGB frames, ``[height, width, 3]``, meant for 16 FPS.
    """
    random = np.random.default_rng(seed)
    shapes = [
        _Shape(random, SHAPES[i % 4], colour, accent)
        for i, (colour, accent) in enumerate(zip(COLOURS, np.roll(COLOURS, 3, axis=0), strict=True))
    ]
    sky, ground = np.array([0.70, 0.72, 0.70]), np.array([0.48, 0.46, 0.40])
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    x = (columns - width / 2) / height  # the picture's height is 1, its centre 0
    y = (rows - height / 2) / height
    for number in range(frames):
        time = number / 96
        zoom = 1 + 0.18 * math.sin(2 * math.pi * time)
        seen_x = x / zoom + 0.15 * math.sin(2 * math.pi * time + 1)
        seen_y = y / zoom + 0.08 * math.cos(2 * math.pi * time)
        slant = np.clip(0.5 + 0.6 * seen_y + 0.3 * seen_x, 0, 1)[..., None]
        picture = sky * (1 - slant) + ground * slant
        for shape in shapes:
            shape.draw(picture, seen_x, seen_y, time, edge=1 / (height * zoom))
        yield (picture * 255 + 0.5).clip(0, 255).astype(np.uint8)


class _Shape:
    """One filled shape on an elliptic path, turning."""

    def __init__(
        self, random: np.random.Generator, kind: str, colour: np.ndarray, accent: np.ndarray
    ) -> None:
        self.kind, self.colour, self.accent = kind, colour, accent
        self.size = random.uniform(0.17, 0.28)
        self.centre = random.uniform((-0.6, -0.25), (0.6, 0.25))
        self.reach = random.uniform((0.2, 0.1), (0.5, 0.3))
        self.phase, self.spin = random.uniform((0, -2), (6.3, 2))
        self.laps = random.choice((-1, 1))

    def draw(
        self, picture: np.ndarray, x: np.ndarray, y: np.ndarray, time: float, edge: float
    ) -> None:
        """Paint the shape over ``picture`` ``[H, W, 3]``; ``edge`` is one pixel's width."""
        angle = 2 * math.pi * self.laps * time + self.phase
        x = x - self.centre[0] - self.reach[0] * math.cos(angle)
        y = y - self.centre[1] - self.reach[1] * math.sin(angle)
        cos, sin = math.cos(self.spin * 2 * time), math.sin(self.spin * 2 * time)
        x, y = cos * x + sin * y, cos * y - sin * x
        cover = np.clip(0.5 - self._distance(x, y) / edge, 0, 1)[..., None]
        colour = self.colour
        if self.kind == "stripes":
            wave = np.sin(x * 2 * math.pi / 0.12)[..., None]
            colour = self.colour + (self.accent - self.colour) * np.clip(0.5 + 3 * wave, 0, 1)
        picture += (colour - picture) * cover

    def _distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the signed distance to the shape's outline, negative inside."""
        if self.kind == "disc":
            return np.hypot(x, y) - self.size
        if self.kind == "triangle":
            slope = math.sqrt(3) / 2
            return np.maximum(np.abs(x) * slope + y / 2, -y) - self.size * 0.6
        width = self.size * (1.3 if self.kind == "stripes" else 0.85)
        return np.maximum(np.abs(x) - width, np.abs(y) - self.size * 0.85)


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
