"""``linear_gelu``: the GEMM epilogue against the plain reference."""

import pytest
import torch

from sdrt.kernels.dispatch import references
from sdrt.kernels.linear_gelu import linear_gelu


def _inputs(dtype, device):
    generator = torch.Generator(device).manual_seed(3)

    def draw(*size):
        return torch.randn(size, generator=generator, device=device).to(dtype)

    return draw(2, 72, 256), draw(512, 256) / 16, draw(512)


def test_is_a_linear_layer_and_tanh_gelu():
    """Reference: the formula of the tanh approximation in float64."""
    x, weight, bias = _inputs(torch.float32, "cpu")
    y = x.double() @ weight.double().T + bias.double()
    inner = (2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)
    expected = 0.5 * y * (1 + torch.tanh(inner))
    torch.testing.assert_close(
        linear_gelu(x, weight, bias).double(), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_epilogue_is_as_good_as_eager(dtype, relative_error):
    """Reference: the plain version in float32; at most twice the same-precision error."""
    arguments = _inputs(dtype, "cuda")
    ours = linear_gelu(*arguments)
    with references():
        eager = linear_gelu(*arguments)
        exact = linear_gelu(*(a.float() for a in arguments))
    # Single precision GEMMs may round differently from one library to the next.
    assert relative_error(ours, exact) <= max(2 * relative_error(eager, exact), 1e-5)
