"""Rotary embedding the way the public references compute it: complex float64, row by row."""

import torch
from torch import Tensor

POSITIONS = 1024
"""Length of the references' table; a frame beyond it has no angle."""


def rope_tables(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the unit complex numbers of frames, rows and columns, complex128 ``[1024, c]``."""
    pairs = head_dim // 2
    widths = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    tables = []
    for width in widths:
        exponent = torch.arange(width, dtype=torch.float64) / width
        angles = torch.outer(torch.arange(POSITIONS, dtype=torch.float64), 10000.0**-exponent)
        tables.append(torch.polar(torch.ones_like(angles), angles).to(device))
    return tables[0], tables[1], tables[2]


def apply_rope(
    x: Tensor, grid: tuple[int, int, int], tables: tuple[Tensor, Tensor, Tensor], starts: Tensor
) -> Tensor:
    """Rotate ``x`` ``[B, N, H, D]``; the angles are put together anew for every row and layer.

    Args:
        grid: frames, rows and columns of a row's tokens.
        starts: int64 ``[B]`` on the device, each row's first frame; read by the host.
    """
    frames, height, width = grid
    rotated = []
    for row in range(x.shape[0]):
        start = int(starts[row].item())
        angles = torch.cat(
            [
                tables[0][start : start + frames].view(frames, 1, 1, -1).expand(*grid, -1),
                tables[1][:height].view(1, height, 1, -1).expand(*grid, -1),
                tables[2][:width].view(1, 1, width, -1).expand(*grid, -1),
            ],
            dim=-1,
        ).reshape(frames * height * width, 1, -1)
        pairs = torch.view_as_complex(x[row].to(torch.float64).unflatten(-1, (-1, 2)).contiguous())
        rotated.append(torch.view_as_real(pairs * angles).flatten(2))
    return torch.stack(rotated).to(x.dtype)
