"""``norm_silu_taps``: the kernel against the plain reference, in float32 and in bf16."""

import pytest
import torch

from sdrt.kernels.norm_silu_taps import norm_silu_taps, norm_silu_taps_ref

SHAPES = [(4, 96, 30, 52), (1, 192, 7, 5), (2, 384, 9, 13), (3, 24, 3, 3)]


def _inputs(shape, dtype, device):
    generator = torch.Generator(device).manual_seed(1)
    frames, channels, height, width = shape

    def draw(*size):
        return torch.randn(size, generator=generator, device=device).to(dtype)

    x = draw(frames, height, width, channels).permute(0, 3, 1, 2)
    history = draw(2, height, width, channels).permute(0, 3, 1, 2)
    return x, 1 + 0.1 * draw(channels), history, 0.1 * draw(channels)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_convolution_input(shape, stacked):
    """Reference: norm, SiLU and ``torch.cat`` over a whole clip, in float64, cut at the call."""
    x, gamma, history, bias = _inputs(shape, torch.float32, "cpu")
    v = x.double() + bias.double().view(-1, 1, 1)
    norm = v.norm(dim=1, keepdim=True) / shape[1] ** 0.5
    y = torch.nn.functional.silu(v / norm * gamma.double().view(-1, 1, 1))
    frames = torch.cat([history.double(), y])
    kept = history.clone()
    taps = norm_silu_taps(x, gamma, kept, bias, stacked)
    if stacked:
        frames_of = [frames[tap : tap + len(x)] for tap in range(3)]
        torch.testing.assert_close(taps.double(), torch.cat(frames_of, 1), atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(taps.double(), frames, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept.double(), frames[-2:], atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_as_good_as_eager(shape, dtype, stacked, with_bias, relative_error):
    """Reference: the plain version in float32; at most twice the same-precision error."""
    x, gamma, history, bias = _inputs(shape, dtype, "cuda")
    bias = bias if with_bias else None
    exact_history, eager_history, kernel_history = history.float(), history.clone(), history.clone()
    exact_bias = None if bias is None else bias.float()
    exact = norm_silu_taps_ref(x.float(), gamma.float(), exact_history, exact_bias, stacked)
    eager = norm_silu_taps_ref(x, gamma, eager_history, bias, stacked)
    kernel = norm_silu_taps(x, gamma, kernel_history, bias, stacked)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs, reference in (
        (kernel, eager, exact),
        (kernel_history, eager_history, exact_history),
    ):
        allowed = max(2 * relative_error(theirs, reference), 1e-6)
        assert relative_error(ours, reference) <= allowed


@pytest.mark.gpu
def test_opcheck():
    """The registration is sound: schema, mutation, fake tensors."""
    arguments = _inputs((2, 96, 5, 7), torch.bfloat16, "cuda")
    torch.library.opcheck(torch.ops.sdrt.norm_silu_taps.default, (*arguments, True))
