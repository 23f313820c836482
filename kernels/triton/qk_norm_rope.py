"""Triton kernel of ``sdrt::qk_norm_rope``: one program a token."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton


@triton.jit
def _norm_rotate(
    source,
    weight_ptr,
    place,
    mask,
    cos,
    sin,
    EPS: tl.constexpr,
    H: tl.constexpr,
    H_POW2: tl.constexpr,
    D: tl.constexpr,
):
    x = tl.load(source + place, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(x * x, axis=1), axis=0) / (H * D)
    x = x * tl.rsqrt(mean + EPS) * weight
    even, odd = tl.split(tl.reshape(x, (H_POW2, D // 2, 2)))
    rotated = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    return tl.reshape(rotated, (H_POW2, D))


@triton.jit
def _kernel(
    qkv_ptr,
    norm_q_ptr,
    norm_k_ptr,
    cos_ptr,
    sin_ptr,
    rows_ptr,
    k_ptr,
    v_ptr,
    q_ptr,
    tokens,
    EPS: tl.constexpr,  # a plain float would be float64 in a compiled package
    H: tl.constexpr,
    H_POW2: tl.constexpr,
    D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)  # over rows and frames: b * N + n
    head = tl.arange(0, H_POW2)[:, None]
    place = head * D + tl.arange(0, D)[None, :]
    mask = (head < H) & (place >= 0)
    half = tl.arange(0, D // 2)[None, :]
    cos = tl.load(cos_ptr + token * (D // 2) + half)
    sin = tl.load(sin_ptr + token * (D // 2) + half)
    source = qkv_ptr + token * (3 * H * D)
    q = _norm_rotate(source, norm_q_ptr, place, mask, cos, sin, EPS, H, H_POW2, D)
    tl.store(q_ptr + token * (H * D) + place, q.to(q_ptr.dtype.element_ty), mask=mask)
    row = tl.load(rows_ptr + token // tokens)
    target = (row * tokens + token % tokens) * (H * D) + place
    k = _norm_rotate(source + H * D, norm_k_ptr, place, mask, cos, sin, EPS, H, H_POW2, D)
    tl.store(k_ptr + target, k.to(k_ptr.dtype.element_ty), mask=mask)
    v = tl.load(source + 2 * H * D + place, mask=mask, other=0.0)
    tl.store(v_ptr + target, v, mask=mask)


def launch(
    qkv: Tensor,
    norm_q: Tensor,
    norm_k: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    k_ring: Tensor,
    v_ring: Tensor,
    eps: float,
) -> Tensor:
    """Launch the kernel; arguments and result as in ``kernels/qk_norm_rope.py``."""
    batch, length, _ = qkv.shape
    _, tokens, heads, width = k_ring.shape
    q = torch.empty((batch, length, heads, width), dtype=qkv.dtype, device=qkv.device)
    heads_pow2 = triton.next_power_of_2(heads)
    wrap_triton(_kernel)[(batch * length,)](
        qkv,
        norm_q,
        norm_k,
        cos,
        sin,
        rows,
        k_ring,
        v_ring,
        q,
        tokens,
        EPS=eps,
        H=heads,
        H_POW2=heads_pow2,
        D=width,
        num_warps=4 if heads_pow2 * width <= 2048 else 8,
    )
    return q
