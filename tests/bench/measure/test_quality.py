"""PSNR, SSIM and relative error against closed forms."""

import math

import pytest
import torch

from sdrt.bench.measure.quality import C1, MOST_DB, psnr, ssim
from sdrt.kernels.measure import relative_error


def _noise(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 24, 32, 3), generator=generator, dtype=torch.uint8)


def test_equal_frames() -> None:
    frames = _noise(0)
    assert psnr(frames, frames) == MOST_DB
    assert ssim(frames, frames) == pytest.approx(1.0, abs=1e-5)


def test_psnr_of_a_constant_difference() -> None:
    frames = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    assert psnr(frames + 5, frames) == pytest.approx(20 * math.log10(255 / 5), abs=1e-4)


def test_ssim_of_flat_frames_is_its_luminance_term() -> None:
    a, b = 60.0, 90.0
    frames = [torch.full((1, 16, 16, 3), int(value), dtype=torch.uint8) for value in (a, b)]
    expected = (2 * a * b + C1) / (a * a + b * b + C1)
    assert ssim(*frames) == pytest.approx(expected, abs=1e-4)


def test_ssim_of_independent_noise_is_near_its_means() -> None:
    """Without covariance only the constants and chance remain of the structure term."""
    assert abs(ssim(_noise(1), _noise(2))) < 0.1


def test_ssim_matches_a_window_computed_by_hand() -> None:
    """One 11x11 picture has one window: the formula, in float64."""
    x, y = (_noise(seed)[:1, :11, :11] for seed in (3, 4))
    line = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    weight = torch.outer(line, line) / line.sum() ** 2
    values = []
    for channel in range(3):
        a, b = x[0, ..., channel].double(), y[0, ..., channel].double()
        mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
        var_a = (weight * (a - mean_a) ** 2).sum()
        var_b = (weight * (b - mean_b) ** 2).sum()
        both = (weight * (a - mean_a) * (b - mean_b)).sum()
        c2 = (0.03 * 255) ** 2
        values.append(
            (2 * mean_a * mean_b + C1)
            / (mean_a**2 + mean_b**2 + C1)
            * (2 * both + c2)
            / (var_a + var_b + c2)
        )
    assert ssim(x, y) == pytest.approx(float(sum(values)) / 3, abs=1e-4)


def test_relative_error() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(expected + torch.tensor([0.0, 0.5]), expected) == pytest.approx(0.1)
