"""Softmax attention with one head that is too wide for fused kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import uses_references

ANYWHERE = "sdpa"
PRODUCTS = "products"


def wide_attention(q: Tensor, k: Tensor, v: Tensor, implementation: str = ANYWHERE) -> Tensor:
    """Return ``softmax(q k' / sqrt(C)) v`` of each frame by itself.

    ``products`` multiplies whole matrices, logits in float32: for a width of 384 fused kernels
    fall behind (0.55 ms for 6240 tokens on an H200). On a CPU, and among references, it is
    always ``sdpa``.

    Args:
        q, k, v: ``[T, N, C]``.
    Returns:
        ``[T, N, C]`` in ``q``'s dtype.
    """
    if implementation != PRODUCTS or not q.is_cuda or uses_references():
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1)
    return torch.stack([_products(*frame) for frame in zip(q, k, v, strict=True)])


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.mm(q, k.t(), out_dtype=torch.float32)
    return torch.softmax(logits * q.shape[-1] ** -0.5, dim=-1).to(v.dtype) @ v
