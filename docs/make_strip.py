"""Make docs/strip.png: frames of the demo's clip, and what the tiny model makes of them."""

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sdrt.runtime.demo import open_session
from sdrt.runtime.measure.stats import StreamStats
from sdrt.runtime.sample_clip import sample_clip
from sdrt.runtime.session import Session
from sdrt.runtime.stream import stream_frames

PROMPTS = ("neon discs", "ocean stripes", "lava triangles")
SHOWN = (8, 20, 32, 44, 56, 68)
"""Frames of the clip, one column each."""
MARGIN, LABEL_HEIGHT = 6, 18
TARGET = Path(__file__).with_name("strip.png")


def restyle(session: Session, clip: list[np.ndarray], prompt: str) -> np.ndarray:
    """Return what the session makes of a clip: uint8 ``[F, H, W, 3]``."""
    session.prepare(prompt, seed=0)
    chunks = stream_frames(session, iter(clip), None, StreamStats())
    return np.concatenate([frames.copy() for frames in chunks])


def draw(rows: dict[str, np.ndarray]) -> Image.Image:
    """Lay out labelled rows of frames ``[F, H, W, 3]``."""
    _, height, width, _ = next(iter(rows.values())).shape
    row_height = LABEL_HEIGHT + height + MARGIN
    size = (MARGIN + len(SHOWN) * (width + MARGIN), len(rows) * row_height)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for row, (label, frames) in enumerate(rows.items()):
        top = row * row_height
        pen.text((MARGIN, top + 4), label, fill="black")
        for column, index in enumerate(SHOWN):
            frame = Image.fromarray(frames[index])
            picture.paste(frame, (MARGIN + column * (width + MARGIN), top + LABEL_HEIGHT))
    return picture


def main() -> None:
    clip = list(islice(sample_clip(), max(SHOWN) + 1))
    rows = {"input": np.stack(clip)}
    with open_session(None, print) as session:
        for prompt in PROMPTS:
            rows[f'"{prompt}"'] = restyle(session, clip, prompt)
    draw(rows).save(TARGET, optimize=True)
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
