"""Input frames for measurements: a moving picture made on the spot, the same every time."""

from collections.abc import Iterator

import numpy as np

DISTINCT_CHUNKS = 8
"""Input chunks that are repeated, so that making pictures takes no time while the clock runs."""


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
    stream = session.stream
    frames = moving_frames(stream.height, stream.width, seed)
    while True:
        count = session.chunk_frames()
        yield np.stack([next(frames) for _ in range(count)]) if count else None


class ChunkSource:
    """Chunks made before they are needed: the first one, then a few that are repeated."""

    def __init__(self, height: int, width: int) -> None:
        self._frames = moving_frames(height, width)
        self._made: dict[int, list[np.ndarray]] = {}
        self._next = 0

    def prepare(self, count: int) -> None:
        """Make the chunks of ``count`` frames."""
        if count and count not in self._made:
            self._made[count] = [
                np.stack([next(self._frames) for _ in range(count)]) for _ in range(DISTINCT_CHUNKS)
            ]

    def take(self, count: int) -> np.ndarray | None:
        """Return a chunk of ``count`` frames; None for 0, text to video."""
        if not count:
            return None
        self.prepare(count)
        self._next += 1
        return self._made[count][self._next % DISTINCT_CHUNKS]
