"""Triton kernel of ``kernels/residual_norm.py``: one program a few tokens of the same timestep."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton


@triton.jit
def _row(own_ptr, timestep_ptr, stride, INDEX: tl.constexpr, C: tl.constexpr, column, inside):
    own = tl.load(own_ptr + INDEX * C + column, mask=inside, other=0.0).to(tl.float32)
    return own + tl.load(timestep_ptr + INDEX * stride + column, mask=inside, other=0.0)


@triton.jit
def _kernel(
    x_ptr,
    update_ptr,
    own_ptr,
    timestep_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    y_ptr,
    tokens,  # of each timestep
    timesteps,  # of each row of the batch
    batch_stride,
    timestep_stride,
    row_stride,
    EPS: tl.constexpr,  # a plain float would be float64 in a compiled package
    ADDS: tl.constexpr,
    GATE: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    AFFINE: tl.constexpr,
    BIASED: tl.constexpr,
    CENTRED: tl.constexpr,
    C: tl.constexpr,
    C_POW2: tl.constexpr,
    TOKENS: tl.constexpr,
):
    table = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    column = tl.arange(0, C_POW2)[None, :]
    inside = column < C
    mask = inside & (token < tokens)
    place = (table * tokens + token) * C + column
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    modulation = timestep_ptr
    if GATE >= 0 or SCALE >= 0:
        batch = table // timesteps
        modulation += batch * batch_stride + (table - batch * timesteps) * timestep_stride
    if ADDS:
        update = tl.load(update_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if GATE >= 0:
            update *= _row(own_ptr, modulation, row_stride, GATE, C, column, inside)
        rounded = (x + update).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place, rounded, mask=mask)
        x = rounded.to(tl.float32)
    if CENTRED:
        x = tl.where(mask, x - (tl.sum(x, axis=1) / C)[:, None], 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / C + EPS)[:, None]
    if AFFINE:
        y *= tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if SCALE >= 0:
        y *= 1 + _row(own_ptr, modulation, row_stride, SCALE, C, column, inside)
        y += _row(own_ptr, modulation, row_stride, SHIFT, C, column, inside)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)


def tile(width: int) -> tuple[int, int]:
    """Return a program's tokens and warps for ``width`` channels, rounded up to a power of two.

    Measured: bench/kernels/residual_norm.py.
    """
    return (4, 8) if width <= 2048 else (1, 8)


def launch(
    x: Tensor,
    eps: float,
    update: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    gate: int = -1,
    shift: int = -1,
    scale: int = -1,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; return the sum (``x`` itself where nothing is added) and its norm.

    Args:
        x, update: ``[..., C]``.
        modulation: own rows ``[1, S, C]`` and those of the timesteps ``[B, E, S, C]``.
        gate, shift, scale: rows of it, where used.
        weight, bias: ``[C]``, where used.
        centred: subtract the mean, as layer norm does and RMS norm does not.
    """
    x, update = x.contiguous(), None if update is None else update.contiguous()
    channels = x.shape[-1]
    own, timestep = modulation or (x, x)
    batch, timesteps = timestep.shape[:2] if modulation else (1, 1)
    strides = timestep.stride()[:3] if modulation else (0, 0, 0)
    tokens = x.numel() // channels // (batch * timesteps)
    y = torch.empty_like(x)
    total = x if update is None else torch.empty_like(x)
    width = triton.next_power_of_2(channels)
    per_program, warps = tile(width)
    wrap_triton(_kernel)[(triton.cdiv(tokens, per_program), batch * timesteps)](
        x,
        x if update is None else update,
        own,
        timestep,
        x if weight is None else weight,
        x if bias is None else bias,
        y if update is None else total,
        y,
        tokens,
        timesteps,
        *strides,
        EPS=eps,
        ADDS=update is not None,
        GATE=gate,
        SHIFT=shift,
        SCALE=scale,
        AFFINE=weight is not None,
        BIASED=bias is not None,
        CENTRED=centred,
        C=channels,
        C_POW2=width,
        TOKENS=per_program,
        num_warps=warps,
    )
    return total, y
