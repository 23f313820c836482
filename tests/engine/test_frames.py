"""Frames to pixels and back."""

import pytest
import torch
from torch import Tensor

from sdrt.engine.frames import FramesToPixels, PixelsToFrames

HEIGHT, WIDTH = 16, 24


def all_levels() -> Tensor:
    """Every level in every channel: frames ``[2, 16, 24, 3]``."""
    return (torch.arange(2 * HEIGHT * WIDTH * 3) % 256).to(torch.uint8).view(2, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("signed", [True, False])
def test_pixels_are_the_formula(signed) -> None:
    """The reference is the formula in float64."""
    frames = all_levels()
    pixels = FramesToPixels(signed, torch.float32)(frames)
    levels = frames.double().permute(0, 3, 1, 2)
    expected = levels / 127.5 - 1 if signed else levels / 255
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert float((pixels - expected).abs().max()) <= 2 * torch.finfo(torch.float32).eps
    assert float(pixels.min()) == (-1 if signed else 0) and float(pixels.max()) == 1


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_level_survives_the_round_trip(signed, dtype) -> None:
    """In bfloat16 it could not: that has 8 bits of mantissa for 256 levels around 1."""
    frames = all_levels()
    restored = PixelsToFrames(signed)(FramesToPixels(signed, dtype)(frames))
    assert restored.is_contiguous() and torch.equal(restored, frames)


@pytest.mark.parametrize("signed", [True, False])
def test_pixels_are_clamped_and_rounded_to_the_nearest_level(signed) -> None:
    levels = torch.tensor([-1e6, -0.6, -0.4, 0.4, 0.6, 99.51, 254.4, 254.6, 255.4, 256.0, 1e6, 7.0])
    expected = torch.tensor([0, 0, 0, 0, 1, 100, 254, 255, 255, 255, 255, 7], dtype=torch.uint8)
    pixels = levels / 127.5 - 1 if signed else levels / 255
    frames = PixelsToFrames(signed)(pixels.view(1, 3, 2, 2))
    assert torch.equal(frames, expected.view(1, 3, 2, 2).permute(0, 2, 3, 1))


@pytest.mark.parametrize("signed", [True, False])
def test_exported_conversions_are_the_eager_ones(signed) -> None:
    to_pixels, to_frames = FramesToPixels(signed, torch.bfloat16), PixelsToFrames(signed)
    frames = all_levels()
    pixels = to_pixels(frames)
    exported = torch.export.export(to_pixels, (frames,), strict=False).module()
    assert torch.equal(exported(frames), pixels)
    exported = torch.export.export(to_frames, (pixels,), strict=False).module()
    assert torch.equal(exported(pixels), to_frames(pixels))
