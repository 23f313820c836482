"""Synthetic weights: full-size noise that keeps activations in range, for benchmarks."""

import math
import zlib

import torch
from torch import Tensor

CHUNK = 1 << 26
"""Elements drawn at a time, so that large tensors need little float32 scratch."""


def draw(
    name: str,
    shape: tuple[int, ...],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """Draw a parameter; the same name, seed and kind of device always give the same values.

    Matrices and convolutions are scaled by 1 / sqrt(fan-in), norms' gains are 1 + 0.1 noise,
    biases 0.02 noise, modulations noise / sqrt(width).

    Args:
        name: the public checkpoint's name; its last part tells gains, biases and modulations.
    Returns:
        The tensor of ``shape``, ``dtype`` on ``device``.
    """
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode(), seed))
    offset, scale = _distribution(name.rpartition(".")[2], shape)
    tensor = torch.empty(shape, device=device, dtype=dtype)
    for part in tensor.view(-1).split(CHUNK):
        noise = torch.randn(part.shape, generator=generator, device=device)
        part.copy_(noise.mul_(scale).add_(offset))
    return tensor


def _distribution(leaf: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the mean and the standard deviation of a parameter."""
    if leaf == "gamma" or (leaf == "weight" and len(shape) == 1):
        return 1.0, 0.1
    if leaf == "bias":
        return 0.0, 0.02
    if leaf == "modulation":
        return 0.0, shape[-1] ** -0.5
    return 0.0, math.prod(shape[1:]) ** -0.5
