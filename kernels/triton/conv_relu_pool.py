"""Triton kernel of ``sdrt::conv_relu_pool``: reads pictures, writes joined pairs of frames."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton


class Tile(NamedTuple):
    """How the work is cut."""

    pixels: int
    count: int
    """Tiles of a program, which reads the weights once for all of them."""
    warps: int


HALF, FLOAT = Tile(64, 4, 4), Tile(16, 4, 4)
"""Of 16-bit numbers (measured: bench/kernels/taehv_ends.py) and of float32, whose
products take more registers."""


@triton.jit
def _kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    pool_ptr,
    out_ptr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    IN: tl.constexpr,
    PATCH_POW2: tl.constexpr,
    MID: tl.constexpr,
    MID_POW2: tl.constexpr,
    OUT: tl.constexpr,
    OUT_POW2: tl.constexpr,
    WEIGHT_OUT: tl.constexpr,  # strides of the weights
    WEIGHT_IN: tl.constexpr,
    WEIGHT_ROW: tl.constexpr,
    WEIGHT_COLUMN: tl.constexpr,
    POOL_OUT: tl.constexpr,
    POOL_IN: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
):
    patch = tl.arange(0, PATCH_POW2)  # what the convolution sees of a frame, as channels_last
    row, column, channel = patch // (3 * IN), patch // IN % 3, patch % IN
    known = patch < 9 * IN
    mid, out = tl.arange(0, MID_POW2), tl.arange(0, OUT_POW2)
    place = row * WEIGHT_ROW + column * WEIGHT_COLUMN + channel * WEIGHT_IN
    weight = tl.load(
        weight_ptr + place[:, None] + (mid * WEIGHT_OUT)[None, :],
        mask=known[:, None] & (mid < MID)[None, :],
        other=0.0,
    )
    bias = tl.load(bias_ptr + mid, mask=mid < MID, other=0.0).to(tl.float32)
    source = pool_ptr + ((mid * POOL_IN)[:, None] + (out * POOL_OUT)[None, :])
    used = (mid < MID)[:, None] & (out < OUT)[None, :]
    first_pool = tl.load(source, mask=used, other=0.0)
    second_pool = tl.load(source + MID * POOL_IN, mask=used, other=0.0)

    frame: tl.constexpr = HEIGHT * WIDTH * IN
    pair = tl.program_id(1).to(tl.int64)
    x_ptr += pair * (2 * frame)
    out_ptr += pair * (HEIGHT * WIDTH * OUT)
    place = ((row - 1) * WIDTH + column - 1) * IN + channel
    for tile in tl.range(COUNT, num_stages=1):
        pixel = (tl.program_id(0) * COUNT + tile) * BLOCK + tl.arange(0, BLOCK)
        y = (pixel // WIDTH)[:, None] + row[None, :] - 1
        x = (pixel % WIDTH)[:, None] + column[None, :] - 1
        inside = (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH) & known[None, :]
        pictures = x_ptr + ((pixel * IN)[:, None] + place[None, :])
        first = tl.load(pictures, mask=inside, other=0.0)
        second = tl.load(pictures + frame, mask=inside, other=0.0)
        hidden = tl.dot(first, weight, input_precision="ieee") + bias[None, :]
        hidden = tl.maximum(hidden, 0.0).to(first.dtype)
        sums = tl.dot(hidden, first_pool, input_precision="ieee")
        hidden = tl.dot(second, weight, input_precision="ieee") + bias[None, :]
        hidden = tl.maximum(hidden, 0.0).to(second.dtype)
        sums = tl.dot(hidden, second_pool, sums, input_precision="ieee")
        written = (pixel < HEIGHT * WIDTH)[:, None] & (out < OUT)[None, :]
        target = out_ptr + ((pixel * OUT)[:, None] + out[None, :])
        tl.store(target, sums.to(first.dtype), mask=written)


def launch(x: Tensor, weight: Tensor, bias: Tensor, pool: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in ``kernels/conv_relu_pool.py``."""
    tile = FLOAT if x.dtype == torch.float32 else HALF
    frames, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    mid, channels_out = len(weight), len(pool)
    out = torch.empty((frames // 2, height, width, channels_out), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(height * width, tile.pixels * tile.count), frames // 2)
    wrap_triton(_kernel)[grid](
        x,
        weight,
        bias,
        pool,
        out,
        HEIGHT=height,
        WIDTH=width,
        IN=channels,
        PATCH_POW2=max(16, triton.next_power_of_2(9 * channels)),
        MID=mid,
        MID_POW2=max(16, triton.next_power_of_2(mid)),
        OUT=channels_out,
        OUT_POW2=max(16, triton.next_power_of_2(channels_out)),
        WEIGHT_OUT=weight.stride(0),
        WEIGHT_IN=weight.stride(1),
        WEIGHT_ROW=weight.stride(2),
        WEIGHT_COLUMN=weight.stride(3),
        POOL_OUT=pool.stride(0),
        POOL_IN=pool.stride(1),
        BLOCK=tile.pixels,
        COUNT=tile.count,
        num_warps=tile.warps,
    )
    return out.permute(0, 3, 1, 2)
