"""RMS norm + SiLU of new frames into the ring that a ``causal_conv`` reads: a chain's start."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.causal_conv import to_c8
from sdrt.kernels.dispatch import HAS_TRITON, use_kernel


def norm_silu_ring(
    x: Tensor,
    gamma: Tensor,
    position: Tensor,
    y_out: Tensor,
    bias: Tensor | None = None,
    x_out: Tensor | None = None,
) -> None:
    """Write ``silu(v / max(|v|, 1e-12) * sqrt(C) * gamma)`` of ``v = x + bias`` to a ring.

    Args:
        x: ``[T, C, H, W]``, channels_last.
        gamma: ``[C]``; bias: ``[C]``.
        position: int64 scalar on the device, frames of the stream before these.
        y_out: ``[R, C / 8, H, W, 8]``, contiguous, R at least T: frame t goes to slot
            ``(position + t) mod R``.
        x_out: ``[T, C / 8, H, W, 8]``, contiguous, overwritten with v.
    """
    op = torch.ops.sdrt.norm_silu_ring if use_kernel(x) else norm_silu_ring_ref
    op(x, gamma, position, y_out, bias, x_out)


def norm_silu_ring_ref(
    x: Tensor,
    gamma: Tensor,
    position: Tensor,
    y_out: Tensor,
    bias: Tensor | None,
    x_out: Tensor | None,
) -> None:
    """Plain PyTorch for :func:`norm_silu_ring`."""
    v = x.float()
    if bias is not None:
        v = v + bias.float().view(-1, 1, 1)
    length = v.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    y = F.silu(v * (math.sqrt(x.shape[1]) / length) * gamma.float().view(-1, 1, 1))
    slots = (position + torch.arange(len(x), device=x.device)) % len(y_out)
    y_out.index_copy_(0, slots, to_c8(y.to(y_out.dtype)))
    if x_out is not None:
        x_out.copy_(to_c8(v))


if HAS_TRITON:
    from sdrt.kernels.triton.norm_silu_ring import launch

    @torch.library.triton_op("sdrt::norm_silu_ring", mutates_args={"y_out", "x_out"})
    def _op(
        x: Tensor,
        gamma: Tensor,
        position: Tensor,
        y_out: Tensor,
        bias: Tensor | None,
        x_out: Tensor | None,
    ) -> None:
        launch(x, gamma, bias, position, y_out, x_out)
