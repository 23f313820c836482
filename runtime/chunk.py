"""A chunk: what one AR step of a stream gave."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """What one AR step gave."""

    index: int
    """AR steps since ``prepare``."""
    frames: np.ndarray
    """uint8 ``[N, H, W, 3]``; N is 0 while the stream batch fills. Valid until the second next
    ``receive``."""
    stages_ms: dict[str, float]
    """``encode_ms``, ``diffuse_ms``, ``decode_ms`` on the device, ``total_ms`` from the first's
    begin to the last's end; ``finalize_ms`` is of the AR step before, as frames do not wait for it.
    """
    latency_ms: float
    """Host time from ``submit`` to the frames being readable."""
    steady: bool
    """The window was full and every stage replayed its steady phase."""
