"""A linear layer followed by tanh-GELU, as one GEMM with an epilogue where the library has one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import use_kernel


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``gelu(x @ weight.T + bias)`` with the tanh approximation.

    On CUDA cuBLASLt applies bias and GELU to the float32 accumulators, before rounding.

    Args:
        x: ``[..., C]``; weight: ``[O, C]``; bias: ``[O]``.
    """
    if not use_kernel(x):
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    flat = torch.ops.aten._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return flat.unflatten(0, x.shape[:-1])
