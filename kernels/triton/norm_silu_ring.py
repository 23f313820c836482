"""Triton kernel of ``sdrt::norm_silu_ring``: reads rows of channels, writes blocks of eight."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton


@triton.jit
def _kernel(
    x_ptr,
    gamma_ptr,
    bias_ptr,
    position_ptr,
    y_ptr,
    copy_ptr,
    SCALE: tl.constexpr,  # a plain float would be float64 in a compiled package, and all of y too
    PIXELS: tl.constexpr,
    RING: tl.constexpr,
    C: tl.constexpr,
    C_POW2: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_COPY: tl.constexpr,
):
    t = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    pixel = first + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_POW2)
    mask = (pixel < PIXELS)[:, None] & (channel < C)[None, :]
    place = (t * PIXELS + pixel)[:, None] * C + channel[None, :]
    v = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
        v = tl.where(mask, v + bias[None, :], 0.0)
    gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32) * SCALE
    length = tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
    y = v / length[:, None] * gamma[None, :]
    y = y * tl.sigmoid(y)

    # Turned around inside of the block, so that writes are contiguous too.
    plane = tl.arange(0, C_POW2 // 8)
    inner = first * 8 + tl.arange(0, BLOCK * 8)
    kept = (plane < C // 8)[:, None] & (inner < PIXELS * 8)[None, :]
    target = plane.to(tl.int64)[:, None] * (PIXELS * 8) + inner[None, :]
    slot = (tl.load(position_ptr) + t) % RING
    blocks = tl.permute(tl.reshape(y, (BLOCK, C_POW2 // 8, 8)), (1, 0, 2))
    blocks = tl.reshape(blocks, (C_POW2 // 8, BLOCK * 8)).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + slot * (PIXELS * C) + target, blocks, mask=kept)
    if HAS_COPY:
        copied = tl.permute(tl.reshape(v, (BLOCK, C_POW2 // 8, 8)), (1, 0, 2))
        copied = tl.reshape(copied, (C_POW2 // 8, BLOCK * 8)).to(copy_ptr.dtype.element_ty)
        tl.store(copy_ptr + t * (PIXELS * C) + target, copied, mask=kept)


def launch(
    x: Tensor,
    gamma: Tensor,
    bias: Tensor | None,
    position: Tensor,
    y_out: Tensor,
    x_out: Tensor | None,
) -> None:
    """Launch the kernel; arguments as in ``kernels/norm_silu_ring.py``."""
    frames, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    width_pow2 = triton.next_power_of_2(channels)
    block = max(4, 4096 // width_pow2)
    pixels = height * width
    wrap_triton(_kernel)[(triton.cdiv(pixels, block), frames)](
        x,
        gamma,
        gamma if bias is None else bias,
        position,
        y_out,
        y_out if x_out is None else x_out,
        SCALE=math.sqrt(channels),
        PIXELS=pixels,
        RING=y_out.shape[0],
        C=channels,
        C_POW2=width_pow2,
        BLOCK=block,
        HAS_BIAS=bias is not None,
        HAS_COPY=x_out is not None,
        num_warps=4,
    )
