"""Attention with one wide head: the ways agree."""

import pytest
import torch

from sdrt.kernels.dispatch import references
from sdrt.kernels.wide_attention import ANYWHERE, PRODUCTS, wide_attention


def softmax_attention(q, k, v):
    """Return plain softmax attention in float64."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v


def relative(a, b) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("implementation", [ANYWHERE, PRODUCTS])
def test_on_a_cpu_it_is_softmax_attention(implementation: str) -> None:
    """Reference: the formula in float64; frames do not see each other."""
    q, k, v = torch.randn(3, 2, 35, 24).unbind(0)
    found = wide_attention(q, k, v, implementation)
    assert relative(found, softmax_attention(q, k, v)) < 1e-6
    assert torch.equal(found[:1], wide_attention(q[:1], k[:1], v[:1], implementation))


@pytest.mark.gpu
@pytest.mark.parametrize(("frames", "tokens"), [(1, 6240), (3, 900)])
def test_products_are_no_worse_than_torch(frames: int, tokens: int) -> None:
    """Reference: float64; at most twice the error of torch's attention in bf16."""
    shape = (3, frames, tokens, 384)
    q, k, v = (4 * torch.randn(shape, device="cuda")).to(torch.bfloat16).unbind(0)
    exact = softmax_attention(q, k, v)
    with references():
        allowed = 2 * relative(wide_attention(q, k, v), exact)
    assert relative(wide_attention(q, k, v, PRODUCTS), exact) <= allowed
