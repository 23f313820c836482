"""ReLU and a 3x3 convolution to a few channels, the last layers of TAEHV's decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import HAS_TRITON, use_kernel


def relu_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``conv(relu(x))``; height and width stay.

    Args:
        x: ``[T, C, H, W]``, channels_last.
        weight: ``[O, C, 3, 3]``, O small: the products with all taps are in registers at once.
        bias: ``[O]``.
    Returns:
        ``[T, O, H, W]``, channels_last.
    """
    if use_kernel(x):
        return torch.ops.sdrt.relu_conv(x, weight, bias)
    return relu_conv_ref(x, weight, bias)


def relu_conv_ref(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Plain PyTorch for :func:`relu_conv`."""
    return F.conv2d(F.relu(x), weight, bias, padding=1)


if HAS_TRITON:
    from sdrt.kernels.triton.relu_conv import launch

    @torch.library.triton_op("sdrt::relu_conv", mutates_args=())
    def _op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return launch(x, weight, bias)
