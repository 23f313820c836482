"""Triton kernel of ``sdrt::norm_silu_taps``: one read of x, one write of the taps."""

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
    history_ptr,
    bias_ptr,
    out_ptr,
    SCALE: tl.constexpr,  # a plain float would be float64 in a compiled package, and all of y too
    PIXELS: tl.constexpr,
    FRAMES: tl.constexpr,
    C: tl.constexpr,
    C_POW2: tl.constexpr,
    BLOCK: tl.constexpr,
    STACKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    # A program owns its pixels in all frames, so that no other reads the history it overwrites.
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_POW2)
    mask = (pixel < PIXELS)[:, None] & (channel < C)[None, :]
    place = pixel.to(tl.int64)[:, None] * C + channel[None, :]
    frame: tl.constexpr = PIXELS * C
    gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32) * SCALE
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    older = tl.load(history_ptr + place, mask=mask, other=0.0)
    newer = tl.load(history_ptr + frame + place, mask=mask, other=0.0)
    if not STACKED:
        tl.store(out_ptr + place, older, mask=mask)
        tl.store(out_ptr + frame + place, newer, mask=mask)
    stacked_place = pixel.to(tl.int64)[:, None] * (3 * C) + channel[None, :]
    for step in tl.range(FRAMES):
        t = step.to(tl.int64)
        v = tl.load(x_ptr + t * frame + place, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            v += bias[None, :]
        length = tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
        y = v / length[:, None] * gamma[None, :]
        y = (y * tl.sigmoid(y)).to(newer.dtype)
        if STACKED:
            row = out_ptr + t * (3 * frame) + stacked_place
            tl.store(row, older, mask=mask)
            tl.store(row + C, newer, mask=mask)
            tl.store(row + 2 * C, y, mask=mask)
        else:
            tl.store(out_ptr + (t + 2) * frame + place, y, mask=mask)
        older = newer
        newer = y
    tl.store(history_ptr + place, older, mask=mask)
    tl.store(history_ptr + frame + place, newer, mask=mask)


def launch(x: Tensor, gamma: Tensor, history: Tensor, bias: Tensor | None, stacked: bool) -> Tensor:
    """Launch the kernel; arguments and result as in ``kernels/norm_silu_taps.py``."""
    frames, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (
        (frames, height, width, 3 * channels) if stacked else (frames + 2, height, width, channels)
    )
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    width_pow2 = triton.next_power_of_2(channels)
    block = max(4, 1024 // width_pow2)  # measured: bench/kernels/norm_silu_taps.py
    pixels = height * width
    wrap_triton(_kernel)[(triton.cdiv(pixels, block),)](
        x,
        gamma,
        history,
        gamma if bias is None else bias,
        out,
        SCALE=math.sqrt(channels),
        PIXELS=pixels,
        FRAMES=frames,
        C=channels,
        C_POW2=width_pow2,
        BLOCK=block,
        STACKED=stacked,
        HAS_BIAS=bias is not None,
        num_warps=4,
    )
    return out.permute(0, 3, 1, 2)
