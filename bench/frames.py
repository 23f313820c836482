"""Input frames for measurements: a moving picture made on the spot, the same every time."""

from collections.abc import Iterator

import numpy as np


def moving_frames(height: int, width: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield endless uint8 RGB frames ``[H, W, 3]``: smooth noise that drifts, so motion is real."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width]
    shift = 0
    while True:
        yield np.roll(picture, (shift, 2 * shift), axis=(0, 1))
        shift += 1


def chunks_for(session, seed: int = 0) -> Iterator[np.ndarray | None]:
    """Yield what each ``submit`` of a session takes, without end; None for text to video."""
    stream = session.manifest.preset["stream"]
    frames = moving_frames(stream["height"], stream["width"], seed)
    while True:
        count = session.chunk_frames()
        yield np.stack([next(frames) for _ in range(count)]) if count else None
