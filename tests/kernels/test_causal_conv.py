"""``causal_conv``: the reference against PyTorch's convolutions, the kernel against it."""

import math

import pytest
import torch
import torch.nn.functional as F

from sdrt.kernels.causal_conv import (
    causal_conv,
    causal_conv_ref,
    from_c8,
    pack_upsample_weight,
    pack_weight,
    to_c8,
)


def _assert_close(out, ref):
    """Compare float32 sums over some thousand products of about 1."""
    torch.testing.assert_close(out.to(ref.dtype), ref, atol=1e-4, rtol=1e-4)


def _norm_silu(x, gamma):
    length = x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return F.silu(x / length * math.sqrt(x.shape[1]) * gamma.view(-1, 1, 1))


def test_layouts_are_inverse():
    """Both directions, and what the layout says of one element."""
    x = torch.randn(3, 24, 5, 7)
    blocks = to_c8(x)
    assert blocks.shape == (3, 3, 5, 7, 8)
    assert blocks[2, 1, 4, 6, 3] == x[2, 11, 4, 6]
    torch.testing.assert_close(from_c8(blocks), x, atol=0, rtol=0)


@pytest.mark.parametrize("calls", [[1, 4, 4], [5, 4], [4, 1, 2, 3]])
def test_a_stream_is_one_convolution(calls):
    """Reference: conv3d over the whole clip, in float64, after zeros; two layers, by rings."""
    torch.manual_seed(1)
    frames, ring = sum(calls), max(calls) + 3
    y = torch.randn(frames, 32, 6, 5)
    weights = [torch.randn(32, 32, 3, 3, 3) / 30 for _ in range(2)]
    bias, gamma, residual = torch.randn(32), torch.randn(32), torch.randn(frames, 32, 6, 5)
    x = expected = y.double()
    for weight, extra in zip(weights, (0, residual.double()), strict=True):
        clip = F.pad(expected.transpose(0, 1), (0, 0, 0, 0, 2, 0)).unsqueeze(0)
        x = F.conv3d(clip, weight.double(), bias.double(), padding=(0, 1, 1))
        x = x.squeeze(0).transpose(0, 1) + extra
        expected = _norm_silu(x, gamma.double())

    rings = [torch.zeros(ring, 4, 6, 5, 8) for _ in range(3)]
    position, done = torch.zeros((), dtype=torch.int64), 0
    for count in calls:
        new = slice(done, done + count)
        slots = torch.arange(done, done + count) % ring
        rings[0][slots] = to_c8(y[new])
        outputs = {"position": position, "frames": count, "gamma": gamma}
        causal_conv(rings[0], pack_weight(weights[0]), bias, y_out=rings[1], **outputs)
        sums = torch.empty(count, 32, 6, 5)
        causal_conv(
            rings[1],
            pack_weight(weights[1]),
            bias,
            residual=to_c8(residual[new]),
            x_out=sums,
            y_out=rings[2],
            **outputs,
        )
        _assert_close(sums, x[new])
        _assert_close(from_c8(rings[2][slots]), expected[new])
        done += count
        position += count


def test_without_time_taps():
    """Reference: conv2d."""
    x, weight = torch.randn(2, 16, 6, 5), torch.randn(16, 16, 3, 3)
    out = torch.empty(2, 2, 6, 5, 8)
    causal_conv(to_c8(x), pack_weight(weight), frames=2, x_out=out)
    _assert_close(from_c8(out), F.conv2d(x, weight, padding=1))


def test_upsampling():
    """Reference: nearest interpolation and conv2d."""
    x, weight, bias = torch.randn(2, 32, 6, 5), torch.randn(32, 32, 3, 3), torch.randn(32)
    gamma = torch.randn(32)
    out, normed = torch.empty(2, 4, 12, 10, 8), torch.empty(2, 32, 12, 10)
    packed = pack_upsample_weight(weight)
    given = {"frames": 2, "gamma": gamma, "ring": False}
    causal_conv(to_c8(x), packed, bias, x_out=out, y_out=normed, **given)
    expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=1)
    _assert_close(from_c8(out), expected)
    _assert_close(normed, _norm_silu(expected, gamma))


KINDS = {
    "96": (96, 96, 3, False),
    "96 to 192": (96, 192, 3, False),
    "192": (192, 192, 3, False),
    "16 of each frame": (96, 16, 1, False),
    "upsampling to 96": (192, 96, 1, True),
    "upsampling to 192": (384, 192, 1, True),
}


def _arguments(kind, frames, size, with_residual, blocked):
    """Return a call's arguments, random and with poisoned outputs, as the op orders them."""
    channels_in, channels, time_taps, upsample = KINDS[kind]
    generator = torch.Generator("cuda").manual_seed(1)
    ring, (height, width) = frames + 3, size

    def draw(*shape, scale=1.0):
        values = torch.randn(shape, generator=generator, device="cuda")
        return (scale * values).bfloat16()

    taps = (3,) * (time_taps // 3) + (3, 3)
    weight = draw(channels, channels_in, *taps, scale=(channels_in * 9 * time_taps) ** -0.5)
    weight = pack_upsample_weight(weight) if upsample else pack_weight(weight)
    y = draw(ring if time_taps == 3 else frames, channels_in // 8, height, width, 8)
    height, width = (2 * height, 2 * width) if upsample else size

    def pictures(count):
        if blocked:
            return draw(count, channels // 8, height, width, 8)
        return draw(count, height, width, channels).permute(0, 3, 1, 2)

    return (
        y,
        weight,
        draw(channels),
        draw(channels),
        pictures(frames) if with_residual and not upsample else None,
        torch.tensor(2**40 + 1, device="cuda"),
        frames,
        True,
        pictures(frames),
        pictures(ring),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("size", [(8, 16), (24, 40), (9, 21), (3, 5)])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_is_as_good_as_eager(kind, frames, size, blocked, relative_error, monkeypatch):
    """Reference: the plain version in float32; at most twice the error of it rounded once."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    arguments = _arguments(kind, frames, size, frames % 2 == 0, blocked)

    def run(function, convert):
        copies = [convert(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        function(*copies)
        return copies[-2:]

    def kernel_of(y, weight, bias, gamma, residual, position, count, ring, x_out, y_out):
        names = {"gamma": gamma, "residual": residual, "position": position, "ring": ring}
        causal_conv(y, weight, bias, frames=count, x_out=x_out, y_out=y_out, **names)

    exact = run(causal_conv_ref, lambda a: a.float() if a.is_floating_point() else a.clone())
    eager = run(causal_conv_ref, torch.clone)
    kernel = run(kernel_of, torch.clone)
    for ours, theirs, reference in zip(kernel, eager, exact, strict=True):
        assert relative_error(ours, reference) <= 2 * relative_error(theirs, reference)


@pytest.mark.gpu
def test_opcheck():
    """The registration is sound: schema, mutation, fake tensors."""
    arguments = _arguments("96", 4, (9, 21), True, True)
    torch.library.opcheck(torch.ops.sdrt.causal_conv.default, arguments)
