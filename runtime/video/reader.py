"""Frames in: clips and folders of images as RGB arrays at a session's size and rate."""

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from PIL import Image, ImageOps

from sdrt.kernels.errors import SdrtError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class VideoError(SdrtError):
    """An input that cannot be read or an output that cannot be written, in one line."""


class FrameSource:
    """Frames of one input at the session's size and rate; an iterator to be read once.

    Each item is a uint8 RGB array ``[height, width, 3]``. Reading raises ``VideoError`` where the
    input turns out to be damaged.
    """

    def __init__(self, frames: Iterator[np.ndarray], notes: list[str]) -> None:
        self.notes = notes
        """What was changed to fit the session, one line each."""
        self._frames = frames

    def __iter__(self) -> "FrameSource":
        return self

    def __next__(self) -> np.ndarray:
        return next(self._frames)


def check_input(path: Path) -> None:
    """Refuse an input that ``open_input`` would refuse, without knowing the session's size.

    Raises:
        VideoError: as ``open_input``.
    """
    if path.is_dir():
        _image_sizes(path)
    else:
        _open_clip(path).container.close()


def open_input(path: Path, width: int, height: int, frame_rate: float) -> FrameSource:
    """Open a clip, or a folder of images in natural order, at the given size and rate.

    Another size is scaled to cover the target and cropped around its centre, so that the aspect
    is kept. Another rate is resampled: each output frame is the input frame nearest in time.
    Images count as one frame each.

    Raises:
        VideoError: missing path, no video stream, no frames, truncated or undecodable file, a
            folder without images, an unreadable image.
    """
    if path.is_dir():
        sizes = _image_sizes(path)
        source_width, source_height = next(iter(sizes.values()))
        notes = _size_note(source_width, source_height, width, height)
        if len(set(sizes.values())) > 1:
            notes = [f"input: images of several sizes fitted to {width}x{height}"]
        return FrameSource((_read_image(image, width, height) for image in sizes), notes)

    clip = _open_clip(path)
    shown_width, shown_height = clip.first.width, clip.first.height
    if _quarter_turns(clip.first) % 2:
        shown_width, shown_height = shown_height, shown_width
    notes = _size_note(shown_width, shown_height, width, height)
    if clip.frame_rate and abs(clip.frame_rate - frame_rate) > 0.01:
        notes.append(
            f"input: {clip.frame_rate:.4g} FPS resampled to {frame_rate:.4g} FPS (nearest in time)"
        )
    timed = _resample(_decode(path, clip, frame_rate), frame_rate)
    return FrameSource((_fit(frame, width, height) for frame in timed), notes)


def _size_note(width: int, height: int, to_width: int, to_height: int) -> list[str]:
    if (width, height) == (to_width, to_height):
        return []
    cropped = " and cropped around the centre" if width * to_height != height * to_width else ""
    return [f"input: {width}x{height} scaled to {to_width}x{to_height}{cropped}"]


# Folders of images


def _image_sizes(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the images of a folder in natural order (frame 2 before frame 10) and their sizes."""

    def natural(path: Path) -> list[tuple[int, int, str]]:
        parts = re.findall(r"\d+|\D+", path.name.lower())
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]

    def wanted(path: Path) -> bool:
        return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")

    images = sorted(filter(wanted, folder.iterdir()), key=natural)
    if not images:
        raise VideoError(f"no images in {folder}; expected files ending in .png, .jpg or .webp")
    sizes = {}
    for path in images:
        try:
            with Image.open(path) as image:  # reads the header only
                sizes[path] = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _unreadable_image(path) from error
    return sizes


def _unreadable_image(path: Path) -> VideoError:
    return VideoError(f"cannot read the image {path}: damaged, or not an image")


def _read_image(path: Path, width: int, height: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable_image(path) from error
    return np.array(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))


# Clips


@dataclass
class _Clip:
    """An open clip of which the first frame is decoded already."""

    container: InputContainer
    frames: Iterator[av.VideoFrame]
    first: av.VideoFrame
    timed: bool
    """Frames carry display times; else they come at ``frame_rate``."""
    frame_rate: float | None


def _open_clip(path: Path) -> _Clip:
    """Open a clip and decode its first frame; every cheap reason to refuse it is found here."""
    if not path.exists():
        raise VideoError(f"no such input: {path}")
    unreadable = VideoError(f"cannot read {path}: truncated, damaged, or not a video")
    try:
        container = av.open(str(path))
    except PermissionError as error:
        raise VideoError(f"cannot read {path}: permission denied") from error
    except FFmpegError as error:
        raise unreadable from error
    try:
        streams = [s for s in container.streams.video if not _is_cover_picture(s)]
        if not streams:
            raise VideoError(f"{path} has no video stream; expected a clip or a folder of images")
        stream = streams[0]
        if stream.codec_context is None:  # the header breaks off before the codec's part
            raise unreadable
        if _indexed_bytes(stream) > path.stat().st_size:
            raise VideoError(f"{path} is truncated: its index names frames past the file's end")
        stream.thread_type = "AUTO"
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None:
            raise VideoError(f"{path} is empty: it has a video stream but no frames")
    except VideoError:
        container.close()
        raise
    except FFmpegError as error:
        container.close()
        raise unreadable from error
    # AVI has one rate and no display times: what is read as such is the order of decoding.
    timed = first.time is not None and container.format.name != "avi"
    rate = (stream.average_rate if timed else None) or stream.guessed_rate
    return _Clip(container, chain((first,), frames), first, timed, float(rate) if rate else None)


def _is_cover_picture(stream: av.VideoStream) -> bool:
    """Return whether a "video" stream is the picture that comes with a sound file."""
    return bool(stream.disposition & Disposition.attached_pic)


def _indexed_bytes(stream: av.VideoStream) -> int:
    """Return how long the file must be by its own index; 0 without one."""
    index = stream.index_entries
    last = index[len(index) - 1] if len(index) else None
    return last.pos + last.size if last else 0


def _decode(
    path: Path, clip: _Clip, default_rate: float
) -> Iterator[tuple[av.VideoFrame, float, float]]:
    """Yield (frame, start, duration), the times in seconds from the first frame's start."""
    spacing = 1 / (clip.frame_rate or default_rate)
    origin = clip.first.time or 0.0
    count = 0
    with closing(clip.container):
        try:
            for frame in clip.frames:
                start, duration = count * spacing, spacing
                if clip.timed and frame.time is not None and frame.time_base is not None:
                    start = frame.time - origin
                    duration = float((frame.duration or 0) * frame.time_base) or spacing
                yield frame, start, duration
                count += 1
        except FFmpegError as error:
            raise VideoError(
                f"cannot decode {path} after frame {count}: truncated or damaged"
            ) from error


def _resample(
    timed: Iterable[tuple[av.VideoFrame, float, float]], frame_rate: float
) -> Iterator[av.VideoFrame]:
    """Yield the frame nearest in time to each tick of ``frame_rate``, to the clip's end."""
    tick = 0
    held, held_start, end = None, 0.0, 0.0
    for frame, start, duration in timed:
        while held is not None and tick / frame_rate < (held_start + start) / 2:
            yield held
            tick += 1
        held, held_start, end = frame, start, start + duration
    # The last frame lasts while at least half of the output frame lies inside the clip.
    while held is not None and (tick == 0 or (tick + 0.5) / frame_rate <= end):
        yield held
        tick += 1


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Return how often to turn a frame counter-clockwise to see it upright (phone clips)."""
    return round(frame.rotation / 90) % 4


def _fit(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """Turn upright, scale to cover and crop around the centre: ``[height, width, 3]``, RGB."""
    quarter_turns = _quarter_turns(frame)
    if quarter_turns % 2:
        width, height = height, width
    scale = max(width / frame.width, height / frame.height)
    scaled_width = max(width, round(frame.width * scale))
    scaled_height = max(height, round(frame.height * scale))
    pixels = frame.to_ndarray(
        format="rgb24", width=scaled_width, height=scaled_height, interpolation="BICUBIC"
    )
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    pixels = pixels[top : top + height, left : left + width]
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))
