"""The streaming loop: frames into a session, its frames out, neither waiting for the other."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from sdrt.runtime.measure.stats import StreamStats

if TYPE_CHECKING:  # a session needs torch, the loop does not
    from sdrt.runtime.chunk import Chunk
from sdrt.runtime.session import Session


def stream_frames(
    session: "Session",
    frames: Iterator[np.ndarray] | None,
    max_frames: int | None,
    stats: StreamStats,
) -> Iterator[np.ndarray]:
    """Run a prepared session to the end of its input and yield the frames it makes.

    On a GPU chunk k+1 is already submitted while chunk k is awaited, so that the device never
    waits for the host; on a CPU ``submit`` itself does the work, and waiting ahead would only add
    latency. N input frames give N output frames: a last chunk that is not full is padded with its
    last frame, and what the padding became is cut off.

    Args:
        frames: uint8 RGB ``[H, W, 3]`` for video to video, None for text to video.
        max_frames: frames to make at most; needed for text to video.
        stats: gets every chunk.
    Returns:
        Uint8 RGB ``[F, H, W, 3]``, F at least 1; valid until the next one is asked for.
    """
    wanted = made = 0

    def finished_chunks() -> "Iterator[Chunk]":
        nonlocal wanted
        in_flight, ahead = 0, 1 if session.device.type == "cuda" else 0
        for chunk, count in _chunks(session, frames, max_frames):
            stats.submitted()
            session.submit(chunk)
            wanted += count
            in_flight += 1
            if in_flight > ahead:
                yield _received(session.receive(), stats)
                in_flight -= 1
        if in_flight:
            yield _received(session.receive(), stats)
        for chunk in session.drain():
            yield _received(chunk, stats, draining=True)

    for chunk in finished_chunks():
        kept = chunk.frames[: wanted - made]
        made += len(kept)
        if len(kept):
            yield kept


def _received(chunk: "Chunk", stats: StreamStats, draining: bool = False) -> "Chunk":
    stats.received(chunk, draining)
    return chunk


def _chunks(
    session: "Session", frames: Iterator[np.ndarray] | None, max_frames: int | None
) -> Iterator[tuple[np.ndarray | None, int]]:
    """Yield what each submit takes, and how many output frames it stands for."""
    if frames is not None:
        source = _with_lookahead(islice(frames, max_frames), session.stream.lookahead_frames)
        while taken := list(islice(source, session.chunk_frames())):
            pictures = [picture for picture, _ in taken]
            padding = [pictures[-1]] * (session.chunk_frames() - len(taken))
            yield np.stack(pictures + padding), sum(wanted for _, wanted in taken)
        return
    if max_frames is None:
        raise ValueError("text to video has no end of its own: max_frames is needed")
    made = 0
    while made < max_frames:
        count = session.stream.frames_out if made else session.stream.first_frames_out
        yield None, min(count, max_frames - made)
        made += count


def _with_lookahead(
    frames: Iterator[np.ndarray], lookahead: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield each frame with True, then the last one repeated with False: no output is wanted."""
    picture = None
    for picture in frames:
        yield picture, True
    if picture is not None:
        yield from [(picture, False)] * lookahead
