"""The motion-adaptive noise scale against the reference's case and against the rule."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sdrt.engine.motion import MotionNoise, motion_noise_scale

TOLERANCE = 1e-6
"""Relative; float32's rounding of one mean over a few thousand numbers."""

HEIGHT, WIDTH = 16, 24
INITIAL = 0.7


def clip(frames: int) -> Tensor:
    """A gradient that moves, at a changing speed: frames ``[F, 16, 24, 3]``."""
    shifts = torch.arange(frames).square()
    columns = torch.arange(WIDTH)[None, :] * 5 + shifts[:, None]
    return (columns % 256).to(torch.uint8)[:, None, :, None].expand(-1, HEIGHT, -1, 3).contiguous()


def test_noise_scale_is_the_reference(golden) -> None:
    """Chunks of 4 frames that end before frame 9 and before frame 13, initial scale 0.8."""
    tensors, _ = golden("scheduler")
    video = tensors["motion_video"][0].transpose(0, 1)
    scale = torch.tensor([0.8], dtype=torch.float64)
    for index, end in enumerate((9, 13)):
        scale = motion_noise_scale(video[end - 5 : end], scale, 0.8)
        expected = float(tensors["noise_scale"][index])
        assert float(scale) == pytest.approx(expected, rel=TOLERANCE)
        assert int((1000 * scale).long()) - 100 == int(tensors["current_step"][index])


def test_stage_follows_the_rule_over_a_stream() -> None:
    """The reference is the rule in NumPy and Python floats."""
    frames = clip(13)
    first = MotionNoise(INITIAL, 1000, HEIGHT, WIDTH, first=True)
    steady = MotionNoise(INITIAL, 1000, HEIGHT, WIDTH, first=False)
    states = first.states("cpu")
    scale = first(frames[:5], states=states)
    assert scale.dtype == torch.float32 and float(scale) == pytest.approx(INITIAL)

    pixels = frames.double().numpy() / 127.5 - 1
    expected = INITIAL
    for start in (5, 9):
        scale, timestep = steady(frames[start : start + 4], states=states)
        change = np.diff(pixels[start - 1 : start + 4], axis=0)
        motion = min(np.sqrt((change**2).mean(axis=(1, 2, 3))).max() / 0.2, 1.0)
        expected = (INITIAL - 0.1 * motion) * 0.9 + expected * 0.1
        assert float(scale) == pytest.approx(expected, rel=TOLERANCE)
        assert timestep.dtype == torch.int64 and timestep.tolist() == [int(1000 * expected) - 100]
        assert torch.equal(states["last_frame"], frames[start + 3])
    assert expected < INITIAL


def test_a_still_picture_keeps_the_initial_scale() -> None:
    """Also in its timestep, which is cut, not rounded: 700 - 100."""
    frames = clip(1).expand(5, -1, -1, -1)
    states = MotionNoise(INITIAL, 1000, HEIGHT, WIDTH, first=True).states("cpu")
    MotionNoise(INITIAL, 1000, HEIGHT, WIDTH, first=True)(frames, states=states)
    for _ in range(5):
        steady = MotionNoise(INITIAL, 1000, HEIGHT, WIDTH, first=False)
        scale, timestep = steady(frames[:4], states=states)
        assert float(scale) == pytest.approx(INITIAL) and timestep.tolist() == [600]


def test_exported_motion_noise_is_the_eager_one() -> None:
    """Both phases over a stream, states included; the reference is the eager module."""
    frames = clip(13)
    chunks = [frames[:5], frames[5:9], frames[9:]]
    states, exported_states = (
        MotionNoise(INITIAL, 1000, HEIGHT, WIDTH, first=True).states("cpu") for _ in range(2)
    )
    for index, chunk in enumerate(chunks):
        module = MotionNoise(INITIAL, 1000, HEIGHT, WIDTH, first=index == 0)
        kwargs = {"states": module.states("cpu")}
        exported = torch.export.export(module, (chunk,), kwargs, strict=False).module()
        expected = module(chunk, states=states)
        torch.testing.assert_close(
            exported(chunk, states=exported_states), expected, rtol=0, atol=0
        )
        assert all(torch.equal(exported_states[name], states[name]) for name in states)
