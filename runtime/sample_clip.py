"""A procedural clip: what the demo streams, and what is calibrated on unless a clip is given."""

import math
from collections.abc import Iterator

import numpy as np

CLIP_FRAMES = 97
SHAPES = ("disc", "square", "triangle", "stripes")
COLOURS = np.array(
    [
        *((0.52, 0.13, 0.10), (0.95, 0.90, 0.74), (0.16, 0.30, 0.16), (0.93, 0.88, 0.78)),
        *((0.16, 0.14, 0.16), (0.30, 0.20, 0.12), (0.86, 0.76, 0.34), (0.18, 0.22, 0.28)),
    ]
)
"""Earth and stone: far from most palettes that a prompt can name, so that the change shows."""


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
