"""Triton kernel of ``sdrt::relu_conv``: one read of x, whatever the convolution's taps."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton


class Tile(NamedTuple):
    """How the work is cut."""

    columns: int
    """Columns that a program reads; it writes two fewer."""
    rows: int
    """Rows that a program writes; it reads two more."""
    warps: int
    stages: int
    """Of the pipeline: rows in shared memory, the one at work included."""


HALF, FLOAT = Tile(64, 16, 4, 3), Tile(32, 16, 4, 2)
"""Of 16-bit numbers (measured: bench/kernels/taehv_ends.py) and of float32, whose products take
more registers."""


@triton.jit
def _kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    C_POW2: tl.constexpr,
    OUT: tl.constexpr,
    OUT_POW2: tl.constexpr,
    WEIGHT_OUT: tl.constexpr,  # strides of the weight
    WEIGHT_IN: tl.constexpr,
    WEIGHT_ROW: tl.constexpr,
    WEIGHT_COLUMN: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    # A row of the input is multiplied with all taps at once, [row, tap, o]. Taps above each other
    # add to the sums of three rows of the output; taps beside each other have sums of their own,
    # which a finished row adds up with its neighbours'.
    SUMS: tl.constexpr = 4 * OUT_POW2
    channel, place = tl.arange(0, C_POW2), tl.arange(0, 4 * SUMS)
    tap_row, tap, o = place // SUMS, place // OUT_POW2 % 4, place % OUT_POW2
    source = weight_ptr + (channel * WEIGHT_IN)[:, None]
    source += (tap_row * WEIGHT_ROW + tap * WEIGHT_COLUMN + o * WEIGHT_OUT)[None, :]
    used = (tap_row < 3) & (tap < 3) & (o < OUT)
    weight = tl.load(source, mask=(channel < C)[:, None] & used[None, :], other=0.0)

    number = tl.arange(0, COLUMNS)
    column = tl.program_id(0) * (COLUMNS - 2) - 1 + number
    inside = (column >= 0) & (column < WIDTH)
    written = inside & (number > 0) & (number < COLUMNS - 1)
    neighbour = number[:, None] + (tl.arange(0, SUMS) // OUT_POW2)[None, :] - 1
    neighbour = tl.minimum(tl.maximum(neighbour, 0), COLUMNS - 1)
    out = tl.arange(0, OUT_POW2)
    bias = tl.load(bias_ptr + out, mask=out < OUT, other=0.0).to(tl.float32)

    frame = tl.program_id(2).to(tl.int64)
    x_ptr += frame * (HEIGHT * WIDTH * C)
    out_ptr += frame * (HEIGHT * WIDTH * OUT)
    top = tl.program_id(1) * ROWS
    current = tl.zeros((COLUMNS, SUMS), tl.float32)
    following = tl.zeros((COLUMNS, SUMS), tl.float32)
    for step in tl.range(ROWS + 2, num_stages=STAGES):
        row = top - 1 + step
        mask = inside[:, None] & (channel < C)[None, :] & (row >= 0) & (row < HEIGHT)
        pixels = (row * WIDTH + column) * C
        x = tl.load(x_ptr + (pixels[:, None] + channel[None, :]), mask=mask, other=0.0)
        x = tl.maximum(x, 0.0).to(weight.dtype)
        products = tl.dot(x, weight, input_precision="ieee")
        products = tl.reshape(products, (COLUMNS, 2, 2, SUMS)).permute(0, 3, 1, 2)
        even, odd = tl.split(products)
        upper, lower = tl.split(even)
        middle, _ = tl.split(odd)
        done = current + lower
        current = following + middle
        following = upper
        beside = tl.reshape(tl.gather(done, neighbour, 0), (COLUMNS, 4, OUT_POW2))
        y = tl.sum(beside, axis=1) + bias[None, :]
        mask = (written & (step >= 2) & (row <= HEIGHT))[:, None] & (out < OUT)[None, :]
        pixels = ((row - 1) * WIDTH + column) * OUT
        tl.store(out_ptr + (pixels[:, None] + out[None, :]), y.to(x.dtype), mask=mask)


def launch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in ``kernels/relu_conv.py``."""
    tile = FLOAT if x.dtype == torch.float32 else HALF
    frames, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    channels_out = len(weight)
    out = torch.empty((frames, height, width, channels_out), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(width, tile.columns - 2), triton.cdiv(height, tile.rows), frames)
    wrap_triton(_kernel)[grid](
        x,
        weight,
        bias,
        out,
        HEIGHT=height,
        WIDTH=width,
        C=channels,
        C_POW2=max(16, triton.next_power_of_2(channels)),
        OUT=channels_out,
        OUT_POW2=max(4, triton.next_power_of_2(channels_out)),
        WEIGHT_OUT=weight.stride(0),
        WEIGHT_IN=weight.stride(1),
        WEIGHT_ROW=weight.stride(2),
        WEIGHT_COLUMN=weight.stride(3),
        COLUMNS=tile.columns,
        ROWS=tile.rows,
        STAGES=tile.stages,
        num_warps=tile.warps,
    )
    return out.permute(0, 3, 1, 2)
