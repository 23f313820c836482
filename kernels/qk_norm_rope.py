"""RMS norm and rotary embedding of q and k, and the write of k and v into the ring, in one pass."""

import torch
from torch import Tensor

from sdrt.kernels.dispatch import HAS_TRITON, use_kernel


def qk_norm_rope(
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
    """Return the rotated queries; keys and values go to the ring rows of their frames.

    q and k are normalised over the whole width, before the split into heads; rotation acts on
    adjacent pairs, in float32.

    Args:
        qkv: ``[B, N, 3 H D]``, N = frames x tokens per frame.
        norm_q, norm_k: ``[H D]``.
        cos, sin: float32 ``[B, N, D / 2]``.
        rows: int64 ``[B x frames]``, where each frame goes in the rings.
        k_ring, v_ring: ``[R, tokens per frame, H, D]``; overwritten in ``rows``.
    Returns:
        ``[B, N, H, D]`` in ``qkv``'s dtype.
    """
    if use_kernel(qkv):
        arguments = (qkv, norm_q, norm_k, cos, sin, rows, k_ring, v_ring)
        return torch.ops.sdrt.qk_norm_rope(*arguments, eps)
    q, k, v = split_norm_rope(qkv, norm_q, norm_k, cos, sin, k_ring.shape[2:], eps)
    k_ring.index_copy_(0, rows, k.reshape(-1, *k_ring.shape[1:]))
    v_ring.index_copy_(0, rows, v.reshape(-1, *v_ring.shape[1:]))
    return q


def split_norm_rope(
    qkv: Tensor,
    norm_q: Tensor,
    norm_k: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: tuple[int, ...],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k (normalised and rotated) and v, each ``[B, N, H, D]``; ``heads`` is (H, D)."""
    q, k, v = (part.unflatten(-1, heads) for part in qkv.chunk(3, dim=-1))
    return norm_rope(q, norm_q, cos, sin, eps), norm_rope(k, norm_k, cos, sin, eps), v


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Return ``x`` ``[B, N, H, D]`` normalised over (H, D) and rotated, in its dtype."""
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(dim=(-2, -1), keepdim=True) + eps)
    x32 = (x32 * weight.float().view(x.shape[-2:])).to(x.dtype).float()
    even, odd = x32.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


if HAS_TRITON:
    from sdrt.kernels.triton.qk_norm_rope import launch

    @torch.library.triton_op("sdrt::qk_norm_rope", mutates_args={"k_ring", "v_ring"})
    def _op(
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
        return launch(qkv, norm_q, norm_k, cos, sin, rows, k_ring, v_ring, eps)
