"""Clips and folders in, mp4 out; the reference is the frames that each test made itself."""

import re
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from sdrt.runtime.video.reader import VideoError, check_input, open_input
from sdrt.runtime.video.writer import FrameWriter, check_output, side_by_side

WIDTH, HEIGHT = 96, 64
STEP = 6
"""Grey levels between one frame of a test clip and the next: frames tell their number."""


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Callable: writes a clip in which frame i is of grey level ``STEP * i``."""

    def make(
        frames: int,
        rate: float = 16,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        name: str = "clip.mp4",
        times: list[int] | None = None,
    ) -> Path:
        path = tmp_path / name
        options = {"movflags": "+faststart"} if name.endswith(".mp4") else {}
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"crf": "4"}
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(frames):
                pixels = np.full((size[1], size[0], 3), STEP * number % 252, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


def numbers(frames: list[np.ndarray]) -> list[int]:
    """Return which frame of a ``make_clip`` clip each frame is."""
    return [round(float(frame.mean()) / STEP) for frame in frames]


def read(path: Path, width: int = WIDTH, height: int = HEIGHT, rate: float = 16) -> list:
    return list(open_input(path, width, height, rate))


def refusal(path: Path) -> str:
    """Return the one line with which the input is refused, before and while opening."""
    with pytest.raises(VideoError) as early:
        check_input(path)
    with pytest.raises(VideoError) as late:
        open_input(path, WIDTH, HEIGHT, 16)
    assert str(early.value) == str(late.value) and "\n" not in str(late.value)
    return str(late.value)


def test_a_fitting_clip_is_read_as_it_is(make_clip) -> None:
    path = make_clip(21)
    check_input(path)
    source = open_input(path, WIDTH, HEIGHT, 16)
    frames = list(source)
    assert source.notes == []
    assert all(frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 for frame in frames)
    assert all(frame.flags.c_contiguous for frame in frames)
    assert numbers(frames) == list(range(21))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts", "clip.h264"])
def test_every_frame_arrives_from_each_container(make_clip, name: str) -> None:
    assert numbers(read(make_clip(17, name=name))) == list(range(17))


@pytest.mark.parametrize(
    ("rate", "frames"), [(32, 32), (8, 4), (30, 31), (24000 / 1001, 24), (60, 1), (16, 1)]
)
def test_another_rate_takes_the_nearest_frame(make_clip, rate: float, frames: int) -> None:
    source = open_input(make_clip(frames, rate=rate), WIDTH, HEIGHT, 16)
    found = numbers(list(source))
    assert len(found) == max(1, round(frames / rate * 16))
    for tick, number in enumerate(found):
        wanted = min(tick / 16 * rate, frames - 1)
        assert abs(number - wanted) <= 0.5 + 1e-6  # both are nearest halfway between two
    if rate == 16:
        assert source.notes == []
    else:
        assert source.notes == [f"input: {rate:.4g} FPS resampled to 16 FPS (nearest in time)"]


def test_variable_rate_follows_the_timestamps(make_clip) -> None:
    # Frames at 0, 62, 125 ms, then a hold until 500 ms; ticks are 62.5 ms apart.
    path = make_clip(5, name="clip.mkv", times=[0, 62, 125, 500, 563])
    found = numbers(read(path))
    assert found[:3] == [0, 1, 2] and found[8:10] == [3, 4]
    assert found[3:8] == [2, 2, 3, 3, 3]  # tick 5 is at 312.5 ms: halfway, the later frame


def test_another_size_is_scaled_to_cover_and_cropped(tmp_path: Path) -> None:
    # Three vertical bands; twice as wide as the target's aspect, so only the middle remains.
    folder = tmp_path / "frames"
    folder.mkdir()
    picture = np.zeros((HEIGHT, 4 * WIDTH, 3), np.uint8)
    picture[:, : WIDTH + WIDTH // 2] = (255, 0, 0)
    picture[:, WIDTH + WIDTH // 2 : 2 * WIDTH + WIDTH // 2] = (0, 255, 0)
    picture[:, 2 * WIDTH + WIDTH // 2 :] = (0, 0, 255)
    Image.fromarray(picture).save(folder / "0.png")
    clip = tmp_path / "wide.mp4"
    with FrameWriter(clip, 4 * WIDTH, HEIGHT, 16) as writer:
        writer.write(picture[None])
    for path in (folder, clip):
        source = open_input(path, WIDTH, HEIGHT, 16)
        (frame,) = source
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(frame[:, 4:-4].astype(int) - (0, 255, 0)).max() < 12
        assert source.notes == ["input: 384x64 scaled to 96x64 and cropped around the centre"]


def test_scaling_without_crop_says_so(make_clip) -> None:
    source = open_input(make_clip(3, size=(2 * WIDTH, 2 * HEIGHT)), WIDTH, HEIGHT, 16)
    assert source.notes == ["input: 192x128 scaled to 96x64"]
    assert numbers(list(source)) == [0, 1, 2]


def test_a_phone_clip_is_turned_upright(tmp_path: Path) -> None:
    lying = np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
    lying[:, :, : WIDTH // 2] = 255  # the left half is light: upright, after a turn clockwise,
    path = tmp_path / "phone.mp4"  # the upper half is
    with FrameWriter(path, WIDTH, HEIGHT, 16) as writer:
        writer.write(lying)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # past version, flags, times, ids, layer and volume
    turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    data[matrix : matrix + 36] = turn
    path.write_bytes(data)
    source = open_input(path, HEIGHT, WIDTH, 16)
    (frame,) = source
    assert source.notes == [] and frame.shape == (WIDTH, HEIGHT, 3)
    assert frame[: WIDTH // 2 - 4].min() > 240 and frame[WIDTH // 2 + 4 :].max() < 16


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (0, 2, 10, 9, 1):
        suffix = {2: "jpg", 9: "webp", 10: "JPEG"}.get(number, "png")
        pixels = np.full((HEIGHT, WIDTH, 3), STEP * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"frame{number}.{suffix}")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not an image either")
    check_input(tmp_path)
    source = open_input(tmp_path, WIDTH, HEIGHT, 16)
    assert numbers(list(source)) == [0, 1, 2, 9, 10] and source.notes == []


def test_images_of_several_sizes_are_fitted(tmp_path: Path) -> None:
    for number, mode in enumerate(("RGB", "L", "RGBA", "P")):
        Image.new(mode, (WIDTH + 7 * number, HEIGHT)).save(tmp_path / f"{number}.png")
    source = open_input(tmp_path, WIDTH, HEIGHT, 16)
    assert [frame.shape for frame in source] == [(HEIGHT, WIDTH, 3)] * 4
    assert source.notes == ["input: images of several sizes fitted to 96x64"]


def test_missing_input(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing.mp4") == f"no such input: {tmp_path / 'nothing.mp4'}"


def test_empty_file_and_text_file(tmp_path: Path) -> None:
    for content in (b"", b"hello\n" * 100):
        path = tmp_path / "clip.mp4"
        path.write_bytes(content)
        assert "truncated, damaged, or not a video" in refusal(path)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    assert "has no video stream" in refusal(path)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = Disposition.attached_pic.value  # pyright: ignore[reportAttributeAccessIssue]
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert "has no video stream" in refusal(path)


def test_clip_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "empty.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    assert "is empty: it has a video stream but no frames" in refusal(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("front", [True, False])
def test_truncated_mp4(make_clip, share: float, front: bool) -> None:
    path = make_clip(60)
    if not front:  # an mp4 whose index follows the pictures
        with av.open(str(path)) as source, av.open(str(path) + ".mov", "w", format="mp4") as moved:
            stream = moved.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    moved.mux(packet)
        path = Path(str(path) + ".mov")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert re.search("truncated", refusal(path))


def test_damage_inside_is_reported_where_it_is_reached(make_clip) -> None:
    path = make_clip(60, size=(256, 256))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) // 2
    data[middle:] = bytes(len(data) - middle)  # lengths of zero where pictures should be
    path.write_bytes(data)
    check_input(path)
    with pytest.raises(VideoError, match=r"cannot decode .* after frame \d+: truncated or damaged"):
        read(path)


def test_folder_without_images(tmp_path: Path) -> None:
    assert "no images in" in refusal(tmp_path)


def test_image_that_is_none(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no")
    assert "cannot read the image" in refusal(tmp_path) and "1.png" in refusal(tmp_path)


def test_image_cut_short_is_reported_where_it_is_reached(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    data = (tmp_path / "0.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[: len(data) // 2])
    source = open_input(tmp_path, WIDTH, HEIGHT, 16)
    next(source)
    with pytest.raises(VideoError, match=r"cannot read the image .*1\.png"):
        next(source)


# Output


def ramp(count: int, start: int = 0) -> np.ndarray:
    levels = np.arange(start, start + count, dtype=np.uint8) * STEP
    return np.broadcast_to(levels[:, None, None, None], (count, HEIGHT, WIDTH, 3)).copy()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("rate", [16, 30000 / 1001])
def test_written_frames_come_back(tmp_path: Path, rate: float) -> None:
    path = tmp_path / "out.mp4"
    storage = np.empty((4, HEIGHT, WIDTH, 3), np.uint8)
    with FrameWriter(path, WIDTH, HEIGHT, rate) as writer:
        writer.write(ramp(0))
        for start in range(0, 40, 4):  # the caller reuses its storage
            storage[:] = ramp(4, start)
            writer.write(storage)
        storage[:] = 0
    assert names(tmp_path) == ["out.mp4"] and writer.frames == 40
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (WIDTH, HEIGHT, 40)
        assert float(stream.average_rate or 0) == pytest.approx(rate, rel=1e-6)
    assert numbers(read(path, rate=rate)) == list(range(40))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 40, 120)], np.uint8)
    picture = np.repeat(colours, 24, axis=0)[None].repeat(HEIGHT, axis=0)
    path = tmp_path / "out.mp4"
    with FrameWriter(path, WIDTH, HEIGHT, 16) as writer:
        writer.write(picture[None])
    (frame,) = read(path)
    centres = frame[HEIGHT // 2, 12::24].astype(int)
    assert np.abs(centres - colours).max() <= 6


def test_an_existing_file_is_replaced_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with FrameWriter(path, WIDTH, HEIGHT, 16) as writer:
        writer.write(ramp(4))
        assert path.read_bytes() == b"old"
    assert len(read(path)) == 4


def test_an_interruption_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt), FrameWriter(path, WIDTH, HEIGHT, 16) as writer:
        writer.write(ramp(5))
        raise KeyboardInterrupt
    assert numbers(read(path)) == list(range(5)) and names(tmp_path) == ["out.mp4"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    for written in (0, 8):
        with pytest.raises(ZeroDivisionError), FrameWriter(tmp_path / "o.mp4", 96, 64, 16) as out:
            out.write(ramp(written))
            raise ZeroDivisionError
        assert names(tmp_path) == []


def test_no_frames_no_file(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, 16):
        pass
    assert names(tmp_path) == []


def test_the_threads_error_is_raised_to_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    (tmp_path / "out.partial.mp4").symlink_to("/dev/full")
    writer = FrameWriter(path, WIDTH, HEIGHT, 16)
    noise = np.random.default_rng(0).integers(0, 255, (4, HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(VideoError, match=r"cannot write .*out\.mp4: No space left on device"):
        for _ in range(100):  # more than the queue holds: a dead encoder must not block
            writer.write(noise)
        writer.close()
    writer.discard()
    assert names(tmp_path) == []


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, 16) as writer:
        for frames in (np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, HEIGHT, WIDTH, 3))):
            with pytest.raises(VideoError, match=r"expected uint8 \[F, 64, 96, 3\]"):
                writer.write(frames)


def test_outputs_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    cases = {
        tmp_path / "out.avi": "must end in .mp4",
        tmp_path / "folder.mp4": "it is a folder",
        tmp_path / "missing" / "out.mp4": "does not exist",
        Path("/proc/out.mp4"): "cannot write /proc/out.mp4",
    }
    for path, reason in cases.items():
        with pytest.raises(VideoError, match=re.escape(reason)):
            check_output(path)
        with pytest.raises(VideoError, match=re.escape(reason)):
            FrameWriter(path, WIDTH, HEIGHT, 16)
    with pytest.raises(VideoError, match="not even"):
        FrameWriter(tmp_path / "out.mp4", 95, 64, 16)
    check_output(tmp_path / "out.mp4")
    check_output(tmp_path / "stats.json", ".json")
    assert names(tmp_path) == ["folder.mp4"]


def test_side_by_side() -> None:
    left, right = ramp(2), ramp(2, 7)
    joined = side_by_side(left, right)
    assert joined.shape == (2, HEIGHT, 2 * WIDTH, 3)
    assert (joined[:, :, :WIDTH] == left).all() and (joined[:, :, WIDTH:] == right).all()
    with pytest.raises(VideoError, match="one shape"):
        side_by_side(left, right[:1])
