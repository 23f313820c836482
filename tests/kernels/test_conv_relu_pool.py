"""``conv_relu_pool``: the reference against sums over patches, the kernel against it."""

import pytest
import torch
import torch.nn.functional as F

from sdrt.kernels.conv_relu_pool import conv_relu_pool, conv_relu_pool_ref

SHAPES = [
    (4, 64, 64, 30, 52),
    (2, 16, 16, 9, 13),
    (6, 24, 40, 5, 67),
    (2, 8, 8, 3, 3),
    (2, 64, 64, 1, 150),
    (2, 32, 32, 130, 1),
]
"""Frames, channels between the convolutions, channels out, height, width."""


def _inputs(shape, dtype, device):
    generator = torch.Generator(device).manual_seed(1)
    frames, middle, channels, height, width = shape

    def draw(*size, scale=1.0):
        values = scale * torch.randn(size, generator=generator, device=device)
        layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
        return values.to(dtype).contiguous(memory_format=layout)

    return (
        draw(frames, 3, height, width),
        draw(middle, 3, 3, 3, scale=27**-0.5),
        draw(middle, scale=0.5),
        draw(channels, 2 * middle, 1, 1, scale=(2 * middle) ** -0.5),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_sums_over_patches(shape):
    """Reference: products of unfolded patches, and of each frame with its half of the pool."""
    x, weight, bias, pool = _inputs(shape, torch.float32, "cpu")
    frames, middle, channels, height, width = shape
    patches = F.unfold(x.double(), 3, padding=1)
    hidden = torch.einsum("ok,fkp->fop", weight.double().flatten(1), patches)
    hidden = (hidden + bias.double()[:, None]).clamp_min(0)
    halves = pool.double().view(channels, 2, middle)
    expected = torch.einsum("cfo,tfop->tcp", halves, hidden.unflatten(0, (-1, 2)))
    y = conv_relu_pool(x, weight, bias, pool)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = expected.view(frames // 2, channels, height, width)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_as_good_as_eager(shape, dtype, relative_error, monkeypatch):
    """Reference: the plain version in float64; at most twice the same-precision error."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    arguments = _inputs(shape, dtype, "cuda")
    exact = conv_relu_pool_ref(*(tensor.double() for tensor in arguments))
    eager = conv_relu_pool_ref(*arguments)
    kernel = conv_relu_pool(*arguments)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    allowed = max(2 * relative_error(eager, exact), 1e-6)
    assert relative_error(kernel, exact) <= allowed


@pytest.mark.gpu
def test_any_strides():
    """Reference: the same tensors in channels_last; nothing but the result's layout is fixed."""
    arguments = _inputs(SHAPES[0], torch.bfloat16, "cuda")
    plain = [tensor.contiguous() for tensor in arguments]
    assert torch.equal(conv_relu_pool(*plain), conv_relu_pool(*arguments))


@pytest.mark.gpu
def test_opcheck():
    """The registration is sound: schema, fake tensors."""
    arguments = _inputs(SHAPES[1], torch.bfloat16, "cuda")
    torch.library.opcheck(torch.ops.sdrt.conv_relu_pool.default, arguments)
