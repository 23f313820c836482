"""Frames out: an H.264 file, encoded in a thread beside the stream."""

import os
import queue
import tempfile
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from sdrt.runtime.video.reader import VideoError

QUEUED_CHUNKS = 8
"""Chunks that may wait for the encoder before ``FrameWriter.write`` blocks."""


def check_output(path: Path, suffix: str = ".mp4") -> None:
    """Refuse an output that could not be written, before any work; creates nothing.

    Raises:
        VideoError: wrong suffix, a folder of that name, a missing or unwritable parent folder.
    """
    if path.suffix.lower() != suffix:
        raise VideoError(f"output {path} must end in {suffix}")
    if path.is_dir():
        raise VideoError(f"cannot write {path}: it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise VideoError(f"cannot write {path}: the folder {path.parent} does not exist")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise VideoError(f"cannot write {path}: {error.strerror} ({path.parent})") from error


class FrameWriter:
    """Writes frames to an H.264 mp4, encoding in a thread of its own.

    The frames go to ``NAME.partial.mp4``, renamed over the output when complete. As a context
    manager it keeps what was written when it is left normally or by ``KeyboardInterrupt``, and
    removes it when it is left by an error. Without any frame there is no file.

    Raises:
        VideoError: as ``check_output``; sizes that are not even (yuv420p halves them).
    """

    def __init__(self, path: Path, width: int, height: int, frame_rate: float) -> None:
        check_output(path)
        if width % 2 or height % 2:
            raise VideoError(f"cannot write {path}: {width}x{height} is not even in both sizes")
        self.path = path
        self.frames = 0
        """Frames accepted so far."""
        self._shape = (height, width, 3)
        self._rate = Fraction(frame_rate).limit_denominator(1001)
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._error: BaseException | None = None
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(QUEUED_CHUNKS)
        self._thread = threading.Thread(target=self._run, name="frame-writer", daemon=True)
        self._thread.start()

    def write(self, frames: np.ndarray) -> None:
        """Hand frames to the encoder; blocks only while the queue is full.

        Args:
            frames: uint8 RGB, ``[F, height, width, 3]`` (F may be 0); copied, so that the caller
                may reuse the storage.
        Raises:
            VideoError: the encoder failed on earlier frames.
        """
        if frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            raise VideoError(
                f"frames for {self.path} are {frames.dtype} {list(frames.shape)}; "
                f"expected uint8 [F, {', '.join(map(str, self._shape))}]"
            )
        self._raise_failure()
        if len(frames):
            self._queue.put(frames.copy())
            self.frames += len(frames)

    def close(self) -> None:
        """Finish the file and give it its name; with no frames there is none.

        Raises:
            VideoError: the encoder failed; nothing is left behind.
        """
        self._stop()
        try:
            self._raise_failure()
            if self.frames:
                os.replace(self._partial, self.path)
        except OSError as error:
            raise VideoError(f"cannot write {self.path}: {error.strerror}") from error
        finally:
            self._partial.unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop and remove what was written."""
        self._stop()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "FrameWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.discard()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._error is not None:
            reason = getattr(self._error, "strerror", None) or self._error
            raise VideoError(f"cannot write {self.path}: {reason}") from self._error

    def _queued(self) -> Iterator[np.ndarray]:
        while (chunk := self._queue.get()) is not None:
            yield chunk

    def _run(self) -> None:
        chunks = self._queued()
        try:
            first = next(chunks, None)
            if first is not None:  # without frames there is no file
                self._encode(chain((first,), chunks))
        except BaseException as error:  # raised again by write() or close()
            self._error = error
            for _ in chunks:  # write() must not block on a queue that nobody empties
                pass

    def _encode(self, chunks: Iterable[np.ndarray]) -> None:
        height, width, _ = self._shape
        # The index goes to the front, so that players start before the whole file is there.
        options = {"movflags": "+faststart"}
        with av.open(str(self._partial), "w", format="mp4", options=options) as container:
            codec_options = {"crf": "18", "preset": "veryfast"}
            stream = container.add_stream("libx264", rate=self._rate, options=codec_options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            codec = stream.codec_context
            codec.thread_type = "AUTO"
            codec.time_base = 1 / self._rate
            # Untagged files are shown in other colours by some players.
            codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
            codec.color_range = 1  # limited
            for number, pixels in enumerate(chain.from_iterable(chunks)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
                )
                frame.pts, frame.time_base = number, 1 / self._rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join frames ``[..., H, W, 3]`` of one shape to ``[..., H, 2W, 3]``."""
    if left.shape != right.shape:
        raise VideoError(f"side by side needs one shape, got {left.shape} and {right.shape}")
    return np.concatenate([left, right], axis=-2)
