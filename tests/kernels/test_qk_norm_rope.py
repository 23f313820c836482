"""``qk_norm_rope``: against complex rotation in float64, and the kernel against the reference."""

from typing import Any

import pytest
import torch

from sdrt.kernels.dispatch import references
from sdrt.kernels.qk_norm_rope import qk_norm_rope

# rows, frames, tokens per frame, window, heads, head width
SHAPES = [(2, 1, 30, 6, 12, 128), (1, 3, 8, 9, 2, 128), (1, 1, 4, 4, 40, 128), (2, 1, 5, 5, 3, 64)]
EPS = 1e-6


def _inputs(shape, dtype, device):
    batch, frames, tokens, window, heads, width = shape
    generator = torch.Generator(device).manual_seed(2)

    def draw(*size, dtype=dtype):
        return torch.randn(size, generator=generator, device=device).to(dtype)

    angle = 3 * draw(batch, frames * tokens, width // 2, dtype=torch.float32)
    slots = torch.arange(batch * frames, device=device) % window
    rows = torch.arange(batch, device=device).repeat_interleave(frames) * window + slots
    ring = (batch * window, tokens, heads, width)
    return (
        draw(batch, frames * tokens, 3 * heads * width),
        1 + 0.1 * draw(heads * width),
        1 + 0.1 * draw(heads * width),
        angle.cos(),
        angle.sin(),
        rows,
        draw(*ring),
        draw(*ring),
        EPS,
    )


def _clone(arguments) -> list[Any]:
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]


def _widened(arguments) -> list[Any]:
    half = (torch.bfloat16, torch.float16)
    return [
        a.float() if isinstance(a, torch.Tensor) and a.dtype in half else a
        for a in _clone(arguments)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_complex_rotation(shape):
    """Reference: RMS norm over the whole width and complex multiplication, in float64."""
    arguments = _inputs(shape, torch.float32, "cpu")
    qkv, norm_q, norm_k, cos, sin, rows, k_before, v_before, eps = _clone(arguments)
    heads, width = shape[4:]
    turn = torch.complex(cos.double(), sin.double()).unsqueeze(2)

    def expected(x, weight):
        x = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + eps)
        pairs = (x * weight.double()).view(*x.shape[:2], heads, width // 2, 2)
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)

    q = qk_norm_rope(*arguments)
    q_in, k_in, v_in = qkv.chunk(3, -1)
    torch.testing.assert_close(q.double(), expected(q_in, norm_q), atol=1e-5, rtol=1e-5)
    k_ring, v_ring = k_before.double(), v_before.double()
    k_ring[rows] = expected(k_in, norm_k).reshape(len(rows), *k_ring.shape[1:])
    v_ring[rows] = v_in.double().reshape(len(rows), *v_ring.shape[1:])
    torch.testing.assert_close(arguments[6].double(), k_ring, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(arguments[7].double(), v_ring, atol=0, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_as_good_as_eager(shape, dtype, relative_error):
    """Reference: the plain version in float32; at most twice the same-precision error."""
    kernel_in = _inputs(shape, dtype, "cuda")
    eager_in, exact_in = _clone(kernel_in), _widened(kernel_in)
    kernel = qk_norm_rope(*kernel_in)
    with references():
        eager, exact = qk_norm_rope(*eager_in), qk_norm_rope(*exact_in)
    pairs = [(kernel, eager, exact)]
    pairs += [(kernel_in[i], eager_in[i], exact_in[i]) for i in (6, 7)]
    for ours, theirs, reference in pairs:
        allowed = max(2 * relative_error(theirs, reference), 1e-6)
        assert relative_error(ours, reference) <= allowed


@pytest.mark.gpu
def test_opcheck():
    """The registration is sound: schema, mutation, fake tensors."""
    arguments = _inputs(SHAPES[0], torch.bfloat16, "cuda")
    torch.library.opcheck(torch.ops.sdrt.qk_norm_rope.default, arguments)
