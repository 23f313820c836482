"""The residual stream's additions and the norms that follow them, each pair in one pass."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sdrt.kernels.dispatch import HAS_TRITON, use_kernel


class Modulation(NamedTuple):
    """Rows of shifts, scales and gates: a block's own plus those of the timestep."""

    own: Tensor
    """``[1, S, C]``."""
    timestep: Tensor
    """float32 ``[B, E, S, C]``, each for N / E tokens of a row; any strides, but C dense."""

    def row(self, index: int) -> Tensor:
        """Return row ``index``, float32 ``[B, E, C]``."""
        return self.own[:, None, index].float() + self.timestep[:, :, index]


def modulated_norm(x: Tensor, modulation: Modulation, shift: int, scale: int, eps: float) -> Tensor:
    """Return ``norm(x) * (1 + scale) + shift`` in ``x``'s dtype, computed in float32.

    Args:
        x: ``[B, N, C]``.
        shift, scale: rows of ``modulation``.
    """
    if use_kernel(x):
        return torch.ops.sdrt.modulated_norm(x, *modulation, shift, scale, eps)
    normed = F.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    normed = normed.unflatten(1, (modulation.timestep.shape[1], -1))
    factor, offset = (modulation.row(index).unsqueeze(2) for index in (scale, shift))
    return (normed * (1 + factor) + offset).flatten(1, 2).to(x.dtype)


def gated(x: Tensor, update: Tensor, modulation: Modulation, gate: int) -> Tensor:
    """Return ``x + gate * update``, ``[B, N, C]`` in ``x``'s dtype, computed in float32."""
    factor = modulation.row(gate)
    scaled = update.float().unflatten(1, (factor.shape[1], -1)) * factor.unsqueeze(2)
    return (x.float() + scaled.flatten(1, 2)).to(x.dtype)


def gated_affine_norm(
    x: Tensor,
    update: Tensor,
    modulation: Modulation,
    gate: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return :func:`gated`'s result and its norm with ``weight`` and ``bias`` ``[C]``."""
    if use_kernel(x):
        arguments = (x, update, *modulation, gate, weight, bias)
        return torch.ops.sdrt.gated_affine_norm(*arguments, eps)
    x = gated(x, update, modulation, gate)
    return x, F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def added_modulated_norm(
    x: Tensor, update: Tensor, modulation: Modulation, shift: int, scale: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``x + update`` and its :func:`modulated_norm`, both ``[B, N, C]``."""
    if use_kernel(x):
        arguments = (x, update, *modulation, shift, scale)
        return torch.ops.sdrt.added_modulated_norm(*arguments, eps)
    x = x + update
    return x, modulated_norm(x, modulation, shift, scale, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, by way of float32.

    Args:
        x: ``[..., C]``; weight: ``[C]``.
    """
    if use_kernel(x):
        return torch.ops.sdrt.rms_norm(x, weight, eps)
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
    return (x32 * weight.float()).to(x.dtype)


if HAS_TRITON:
    from sdrt.kernels.triton.residual_norm import launch

    @torch.library.triton_op("sdrt::modulated_norm", mutates_args=())
    def _modulated_norm(
        x: Tensor, own: Tensor, timestep: Tensor, shift: int, scale: int, eps: float
    ) -> Tensor:
        return launch(x, eps, modulation=(own, timestep), shift=shift, scale=scale)[1]

    @torch.library.triton_op("sdrt::gated_affine_norm", mutates_args=())
    def _gated_affine_norm(
        x: Tensor,
        update: Tensor,
        own: Tensor,
        timestep: Tensor,
        gate: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        return launch(
            x, eps, update, modulation=(own, timestep), gate=gate, weight=weight, bias=bias
        )

    @torch.library.triton_op("sdrt::added_modulated_norm", mutates_args=())
    def _added_modulated_norm(
        x: Tensor,
        update: Tensor,
        own: Tensor,
        timestep: Tensor,
        shift: int,
        scale: int,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        return launch(x, eps, update, modulation=(own, timestep), shift=shift, scale=scale)

    @torch.library.triton_op("sdrt::rms_norm", mutates_args=())
    def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return launch(x, eps, weight=weight, centred=False)[1]
