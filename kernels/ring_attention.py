"""Softmax attention of a chunk's queries to a ring of keys and values, by several implementations.

``hopper`` is the compiled kernel of ``kernels/csrc/ring_attention.cu``; ``cudnn`` and ``flash`` are
torch's; ``sdpa`` is what torch picks, and runs everywhere.
"""

import contextlib
import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import use_hopper, uses_references
from sdrt.kernels.errors import SdrtError
from sdrt.kernels.library import address, check, library, multiprocessors, stream_of

ANYWHERE = "sdpa"
COMPILED = "hopper"
HEAD_DIM = 128
"""Width of a head that the compiled kernel takes."""


class AttentionError(SdrtError):
    """An implementation that does not exist."""


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None = None,
    implementation: str = ANYWHERE,
) -> Tensor:
    """Return ``softmax(q k' / sqrt(D)) v`` over the valid keys.

    Args:
        q: ``[B, N, H, D]``; k, v: ``[B, M, H, D]``, in any order of the keys.
        valid: int64 ``[B]``, how many leading keys of each row count, from 1 to M; None: all.
        implementation: one of those that :func:`implementations` gives for such tensors. On a
            CPU, and among references, it is always ``sdpa``.
    Returns:
        ``[B, N, H, D]`` in ``q``'s dtype.
    Raises:
        AttentionError: ``implementation`` does not exist.
    """
    if implementation not in (ANYWHERE, COMPILED, *TORCH_OPS):
        known = ", ".join((ANYWHERE, COMPILED, *TORCH_OPS))
        raise AttentionError(f"unknown attention {implementation!r}, expected one of {known}")
    if implementation == ANYWHERE or not q.is_cuda or uses_references():
        return ring_attention_ref(q, k, v, valid)
    if implementation == COMPILED:
        return torch.ops.sdrt.ring_attention(q, k, v, valid)
    assert valid is None, f"{implementation} attention takes no valid length"
    return TORCH_OPS[implementation](q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))


def ring_attention_ref(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
    """Plain PyTorch for :func:`ring_attention`."""
    mask = None
    if valid is not None:
        mask = torch.arange(k.shape[1], device=q.device) < valid.view(-1, 1, 1, 1)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def implementations(q: Tensor, valid: Tensor | None) -> tuple[str, ...]:
    """Return what runs on tensors like ``q`` ``[B, N, H, D]``, with or without a valid length."""
    found = []
    if q.is_cuda and valid is None:
        small = q[:, :128].contiguous()
        for name in TORCH_OPS:
            with contextlib.suppress(RuntimeError):
                ring_attention(small, small, small, None, name)
                found.append(name)
    if use_hopper(q) and q.shape[-1] == HEAD_DIM:
        found.append(COMPILED)
    return tuple(found) if found and valid is None else (ANYWHERE, *found)


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # The op itself: a choice by context manager is lost while exporting.
    out = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)
    return out[0].transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return out[0].transpose(1, 2)


TORCH_OPS = {"cudnn": _cudnn, "flash": _flash}


@torch.library.custom_op("sdrt::ring_attention", mutates_args=(), device_types="cuda")
def _op(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
    kernels = library()
    assert kernels is not None, "the compiled kernels are not installed"
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, queries, heads, width = q.shape
    assert width == HEAD_DIM and q.dtype == torch.bfloat16
    out = torch.empty_like(q)
    sizes = (batch, queries, k.shape[1], heads)
    processors = multiprocessors(q.device)
    workspace = torch.empty(
        kernels.sdrt_ring_attention_workspace(*sizes, processors),
        dtype=torch.uint8,
        device=q.device,
    )
    code = kernels.sdrt_ring_attention(
        *(address(tensor) for tensor in (q, k, v, out, valid, workspace)),
        *sizes,
        ctypes.c_float(width**-0.5),
        processors,
        stream_of(q),
    )
    check("ring_attention", code)
    return out


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
    return torch.empty_like(q)
