"""RMS norm + SiLU of new frames, joined with a causal convolution's history, in one pass."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import HAS_TRITON, use_kernel

TAPS = 3


def norm_silu_taps(
    x: Tensor, gamma: Tensor, history: Tensor, bias: Tensor | None, stacked: bool
) -> Tensor:
    """Return what a causal 3-tap convolution reads, and keep its history.

    ``y = silu(v / max(|v|, 1e-12) * sqrt(C) * gamma)`` with ``v = x + bias``, norms over the
    channels in float32. The history is the last two frames of ``y``.

    Args:
        x: ``[T, C, H, W]``, channels_last: new frames, T at least 1.
        gamma: ``[C]``; bias: ``[C]``, of the convolution that made ``x`` without it.
        history: ``[2, C, H, W]``, channels_last; read, then overwritten.
        stacked: join the three taps along the channels, else the frames along time.
    Returns:
        ``[T, 3C, H, W]``, oldest tap first, or ``[T + 2, C, H, W]``; channels_last.
    """
    if use_kernel(x):
        return torch.ops.sdrt.norm_silu_taps(x, gamma, history, bias, stacked)
    return norm_silu_taps_ref(x, gamma, history, bias, stacked)


def norm_silu_taps_ref(
    x: Tensor, gamma: Tensor, history: Tensor, bias: Tensor | None, stacked: bool
) -> Tensor:
    """Plain PyTorch for :func:`norm_silu_taps`."""
    v = x.float()
    if bias is not None:
        v = v + bias.float().view(-1, 1, 1)
    length = v.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    y = F.silu(v * (math.sqrt(x.shape[1]) / length) * gamma.float().view(-1, 1, 1)).to(x.dtype)
    frames = torch.cat([history, y])
    count = x.shape[0]
    taps = torch.cat([frames[tap : tap + count] for tap in range(TAPS)], 1) if stacked else frames
    # Of the joined frames, as x may be shorter than the history.
    history.copy_(frames[-history.shape[0] :])
    return taps


if HAS_TRITON:
    from sdrt.kernels.triton.norm_silu_taps import launch

    @torch.library.triton_op("sdrt::norm_silu_taps", mutates_args={"history"})
    def _op(
        x: Tensor, gamma: Tensor, history: Tensor, bias: Tensor | None, stacked: bool
    ) -> Tensor:
        return launch(x, gamma, history, bias, stacked)
