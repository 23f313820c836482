"""The first layers of TAEHV's encoder, a convolution, ReLU and the joining of pairs of frames."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import HAS_TRITON, use_kernel


def conv_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, pool: Tensor) -> Tensor:
    """Return ``pool`` of each pair of neighbouring frames of ``relu(conv(x))``.

    What lies between the two convolutions is rounded to the dtype of ``x``, as everywhere else,
    but never stored: it is as large as all that is read and written here.

    Args:
        x: ``[2T, C, H, W]``, channels_last.
        weight: ``[M, C, 3, 3]``; bias: ``[M]``; of a convolution that keeps height and width.
        pool: ``[O, 2M, 1, 1]``, the channels of a pair's first frame first.
    Returns:
        ``[T, O, H, W]``, channels_last.
    """
    if use_kernel(x):
        return torch.ops.sdrt.conv_relu_pool(x, weight, bias, pool)
    return conv_relu_pool_ref(x, weight, bias, pool)


def conv_relu_pool_ref(x: Tensor, weight: Tensor, bias: Tensor, pool: Tensor) -> Tensor:
    """Plain PyTorch for :func:`conv_relu_pool`."""
    y = F.relu(F.conv2d(x, weight, bias, padding=1))
    pairs = y.unflatten(0, (-1, 2)).flatten(1, 2)
    return F.conv2d(pairs.contiguous(memory_format=torch.channels_last), pool)


if HAS_TRITON:
    from sdrt.kernels.triton.conv_relu_pool import launch

    @torch.library.triton_op("sdrt::conv_relu_pool", mutates_args=())
    def _op(x: Tensor, weight: Tensor, bias: Tensor, pool: Tensor) -> Tensor:
        return launch(x, weight, bias, pool)
