"""``norm_silu_ring``: the reference against plain layouts, the kernel against the reference."""

import pytest
import torch
import torch.nn.functional as F

from sdrt.kernels.causal_conv import from_c8
from sdrt.kernels.norm_silu_ring import norm_silu_ring, norm_silu_ring_ref

SHAPES = [(4, 96, 30, 52), (1, 192, 7, 5), (3, 96, 9, 13), (2, 24, 3, 3)]


def _arguments(shape, dtype, device):
    generator = torch.Generator(device).manual_seed(1)
    frames, channels, height, width = shape

    def draw(*size):
        return torch.randn(size, generator=generator, device=device).to(dtype)

    x = draw(frames, height, width, channels).permute(0, 3, 1, 2)
    position = torch.tensor(2 * frames + 1, device=device)
    ring = draw(frames + 2, channels // 8, height, width, 8)
    return x, 1 + 0.1 * draw(channels), position, ring, 0.1 * draw(channels), ring[:frames].clone()


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_writes_its_slots_only(shape):
    """Reference: norm and SiLU in float64, written frame by frame."""
    x, gamma, position, ring, bias, copy = _arguments(shape, torch.float32, "cpu")
    v = x.double() + bias.double().view(-1, 1, 1)
    norm = v.norm(dim=1, keepdim=True) / shape[1] ** 0.5
    y = F.silu(v / norm * gamma.double().view(-1, 1, 1))
    expected = from_c8(ring).double()
    for t in range(shape[0]):
        expected[(int(position) + t) % len(ring)] = y[t]
    norm_silu_ring(x, gamma, position, ring, bias, copy)
    torch.testing.assert_close(from_c8(ring).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(from_c8(copy).double(), v, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_as_good_as_eager(shape, dtype, whole, relative_error):
    """Reference: the plain version in float32; at most twice the same-precision error."""
    given = _arguments(shape, dtype, "cuda")

    def run(function, convert):
        copies = [convert(a) for a in given]
        function(*copies[:4], *(copies[4:] if whole else (None, None)))
        return copies[3], copies[5]

    exact = run(norm_silu_ring_ref, lambda a: a.float() if a.is_floating_point() else a.clone())
    eager, kernel = run(norm_silu_ring_ref, torch.clone), run(norm_silu_ring, torch.clone)
    for ours, theirs, reference in zip(kernel, eager, exact, strict=True):
        allowed = max(2 * relative_error(theirs, reference), 1e-6)
        assert relative_error(ours, reference) <= allowed


@pytest.mark.gpu
def test_opcheck():
    """The registration is sound: schema, mutation, fake tensors."""
    arguments = _arguments((2, 96, 5, 7), torch.bfloat16, "cuda")
    torch.library.opcheck(torch.ops.sdrt.norm_silu_ring.default, arguments)
