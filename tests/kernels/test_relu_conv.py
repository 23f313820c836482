"""``relu_conv``: the reference against sums over patches, the kernel against it."""

import pytest
import torch
import torch.nn.functional as F

from sdrt.kernels.relu_conv import relu_conv, relu_conv_ref

SHAPES = [
    (4, 64, 3, 30, 124),
    (2, 16, 3, 33, 63),
    (3, 24, 5, 17, 67),
    (2, 8, 3, 3, 3),
    (2, 64, 3, 1, 150),
    (2, 32, 1, 130, 1),
]
"""Frames, channels in and out, height, width."""


def _inputs(shape, dtype, device):
    generator = torch.Generator(device).manual_seed(1)
    frames, channels, channels_out, height, width = shape

    def draw(*size, scale=1.0):
        values = scale * torch.randn(size, generator=generator, device=device)
        layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
        return values.to(dtype).contiguous(memory_format=layout)

    return (
        draw(frames, channels, height, width),
        draw(channels_out, channels, 3, 3, scale=(9 * channels) ** -0.5),
        draw(channels_out, scale=0.5),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_sums_over_patches(shape):
    """Reference: products of unfolded patches."""
    x, weight, bias = _inputs(shape, torch.float32, "cpu")
    patches = F.unfold(x.double().clamp_min(0), 3, padding=1)
    expected = torch.einsum("ok,fkp->fop", weight.double().flatten(1), patches)
    expected = (expected + bias.double()[:, None]).unflatten(2, shape[3:])
    y = relu_conv(x, weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_as_good_as_eager(shape, dtype, relative_error, monkeypatch):
    """Reference: the plain version in float64; at most twice the same-precision error."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    arguments = _inputs(shape, dtype, "cuda")
    exact = relu_conv_ref(*(tensor.double() for tensor in arguments))
    eager = relu_conv_ref(*arguments)
    kernel = relu_conv(*arguments)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    allowed = max(2 * relative_error(eager, exact), 1e-6)
    assert relative_error(kernel, exact) <= allowed


@pytest.mark.gpu
def test_any_strides():
    """Reference: the same tensors in channels_last; nothing but the result's layout is fixed."""
    arguments = _inputs(SHAPES[0], torch.bfloat16, "cuda")
    plain = [tensor.contiguous() for tensor in arguments]
    assert torch.equal(relu_conv(*plain), relu_conv(*arguments))


@pytest.mark.gpu
def test_opcheck():
    """The registration is sound: schema, fake tensors."""
    arguments = _inputs(SHAPES[1], torch.bfloat16, "cuda")
    torch.library.opcheck(torch.ops.sdrt.relu_conv.default, arguments)
