"""``residual_norm``: against float64, and the kernel against the reference."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sdrt.kernels.dispatch import references
from sdrt.kernels.residual_norm import (
    Modulation,
    added_modulated_norm,
    gated,
    gated_affine_norm,
    modulated_norm,
    rms_norm,
)

# rows, timesteps, tokens of each timestep, channels
SHAPES = [(2, 1, 31, 1536), (1, 3, 7, 5120), (1, 1, 5, 48), (2, 3, 1, 200)]
EPS = 1e-6
GATE, SHIFT, SCALE = 2, 3, 4


def _inputs(shape, dtype, device) -> dict[str, Tensor]:
    batch, timesteps, tokens, channels = shape
    generator = torch.Generator(device).manual_seed(5)

    def draw(*size, dtype=dtype) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    return {
        "x": 0.5 + draw(batch, timesteps * tokens, channels),  # a mean that the norm takes out
        "update": draw(batch, timesteps * tokens, channels),
        "own": draw(1, 6, channels),
        "timestep": draw(batch, timesteps, 6, channels, dtype=torch.float32),
        "weight": 1 + 0.1 * draw(channels),
        "bias": draw(channels),
    }


def _head(inputs: dict[str, Tensor]) -> Modulation:
    """Return a modulation of two rows that share the timestep's, as the DiT's head has it."""
    timestep = inputs["timestep"][:, :, 0].unsqueeze(2).expand(-1, -1, 2, -1)
    return Modulation(inputs["own"][:, :2].contiguous(), timestep)


def _calls(inputs: dict[str, Tensor]) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    x, update, weight, bias = (inputs[name] for name in ("x", "update", "weight", "bias"))
    modulation = Modulation(inputs["own"], inputs["timestep"])
    affine = (GATE, weight, bias, EPS)
    return {
        "modulated": lambda: (modulated_norm(x, modulation, SHIFT, SCALE, EPS),),
        "head": lambda: (modulated_norm(x, _head(inputs), 0, 1, EPS),),
        "gated": partial(gated_affine_norm, x, update, modulation, *affine),
        "added": partial(added_modulated_norm, x, update, modulation, SHIFT, SCALE, EPS),
        "rms": lambda: (rms_norm(x, weight, EPS),),
        "rms of a part": lambda: (rms_norm(x.chunk(2, dim=-1)[1], weight.chunk(2)[1], EPS),),
    }


def _exact(inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Return every result in float64, token by token."""
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    x, update, weight, bias = (wide[name] for name in ("x", "update", "weight", "bias"))
    per_timestep = x.shape[1] // wide["timestep"].shape[1]

    def rows(own: Tensor, timestep: Tensor) -> Tensor:
        return (own.unsqueeze(1) + timestep).repeat_interleave(per_timestep, dim=1)

    table = rows(wide["own"], wide["timestep"])
    head = rows(wide["own"][:, :2], wide["timestep"][:, :, :1].expand(-1, -1, 2, -1))

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + EPS).sqrt()

    def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return norm(x) * (1 + scale) + shift

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight

    stepped, summed = x + table[:, :, GATE] * update, x + update
    return {
        "modulated": (modulated(x, table[:, :, SHIFT], table[:, :, SCALE]),),
        "head": (modulated(x, head[:, :, 0], head[:, :, 1]),),
        "gated": (stepped, norm(stepped) * weight + bias),
        "added": (summed, modulated(summed, table[:, :, SHIFT], table[:, :, SCALE])),
        "rms": (rms(x, weight),),
        "rms of a part": (rms(x.chunk(2, dim=-1)[1], weight.chunk(2)[1]),),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_in_float64(shape):
    """Reference: the formulas in float64, with the modulation's rows repeated for each token."""
    inputs = _inputs(shape, torch.float32, "cpu")
    exact = _exact(inputs)
    for name, call in _calls(inputs).items():
        for ours, expected in zip(call(), exact[name], strict=True):
            torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5, msg=name)


def test_gated_is_what_gated_affine_norm_adds():
    inputs = _inputs(SHAPES[3], torch.bfloat16, "cpu")
    modulation = Modulation(inputs["own"], inputs["timestep"])
    ours = gated(inputs["x"], inputs["update"], modulation, GATE)
    assert torch.equal(ours, _calls(inputs)["gated"]()[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_as_good_as_eager(shape, dtype, relative_error):
    """Reference: the formulas in float64; at most twice the same-precision error."""
    inputs = _inputs(shape, dtype, "cuda")
    exact = _exact(inputs)
    for name, call in _calls(inputs).items():
        kernel = call()
        with references():
            eager = call()
        for ours, theirs, reference in zip(kernel, eager, exact[name], strict=True):
            allowed = max(2 * relative_error(theirs, reference), 1e-6)
            assert relative_error(ours, reference) <= allowed, name


@pytest.mark.gpu
def test_opcheck():
    """The registrations are sound: schema, fake tensors."""
    inputs = _inputs(SHAPES[0], torch.bfloat16, "cuda")
    x, update, own, timestep, weight, bias = inputs.values()
    ops, check = torch.ops.sdrt, torch.library.opcheck
    check(ops.modulated_norm.default, (x, own, timestep, SHIFT, SCALE, EPS))
    check(ops.gated_affine_norm.default, (x, update, own, timestep, GATE, weight, bias, EPS))
    check(ops.added_modulated_norm.default, (x, update, own, timestep, SHIFT, SCALE, EPS))
    check(ops.rms_norm.default, (x, weight, EPS))
