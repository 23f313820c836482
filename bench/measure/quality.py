"""How far one video is from another: PSNR, SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5
"""The Gaussian window of SSIM's authors."""
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
MOST_DB = 100.0
"""What equal pictures count as."""


def psnr(found: Tensor, expected: Tensor) -> float:
    """Return the peak signal-to-noise ratio of uint8 frames of any shape, in dB, 100 at most."""
    error = (found.float() - expected.float()).square().mean().double()
    if error == 0:
        return MOST_DB
    return min(MOST_DB, float(10 * torch.log10(PEAK**2 / error)))


def ssim(found: Tensor, expected: Tensor) -> float:
    """Return the mean structural similarity of uint8 frames ``[F, H, W, 3]``, channel by channel.

    Wang et al. 2004, window 11x11, sigma 1.5, borders left out.
    """
    x, y = (
        frames.permute(0, 3, 1, 2).double().flatten(0, 1).unsqueeze(1)
        for frames in (found, expected)
    )
    window = _window(x.device)
    mean_x, mean_y = F.conv2d(x, window), F.conv2d(y, window)
    var_x = F.conv2d(x * x, window) - mean_x.square()
    var_y = F.conv2d(y * y, window) - mean_y.square()
    covariance = F.conv2d(x * y, window) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    return float((luminance * structure).mean())


def _window(device: torch.device) -> Tensor:
    # In float64: the variances are small differences of large numbers, which tf32 would lose.
    place = torch.arange(WINDOW, device=device, dtype=torch.float64) - WINDOW // 2
    line = torch.exp(-place.square() / (2 * SIGMA**2))
    line = line / line.sum()
    return torch.outer(line, line).view(1, 1, WINDOW, WINDOW)
