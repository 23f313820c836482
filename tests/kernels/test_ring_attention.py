"""``ring_attention``: against the softmax written out; every implementation, as good as SDPA."""

import pytest
import torch

from sdrt.kernels.dispatch import references, use_hopper
from sdrt.kernels.ring_attention import (
    ANYWHERE,
    COMPILED,
    AttentionError,
    implementations,
    ring_attention,
)

# rows, queries, keys, heads, valid keys
SHAPES = [
    (2, 1560, 9360, 12, None),
    (2, 1560, 9360, 12, (1560, 7800)),  # rows that fill at different times
    (1, 3120, 512, 12, None),
    (2, 300, 700, 40, (1, 700)),
]
# Around the kernel's tiles: 64 and 128 queries, and blocks of keys.
RAGGED = [
    (rows, queries, keys, heads, valid)
    for queries in (1, 63, 64, 65, 128, 129, 200)
    for rows, keys, heads, valid in (
        (1, 1, 1, None),
        (2, 100, 3, (1, 99)),
        (3, 512, 12, (512, 177, 176)),
        (1, 1561, 40, None),
    )
]


def _inputs(shape, dtype, device, spread=1.0):
    rows, queries, keys, heads, valid = shape
    generator = torch.Generator(device).manual_seed(4)

    def draw(length):
        size = (rows, length, heads, 128)
        return torch.randn(size, generator=generator, device=device).to(dtype)

    q, k, v = spread * draw(queries), draw(keys), draw(keys)
    if valid is None:
        return q, k, v, None
    for row, count in enumerate(valid):
        k[row, count:] = 50.0
        v[row, count:] = 1e4
    return q, k, v, torch.tensor(valid, device=device)


def _exact(q, k, v, valid):
    """The softmax written out head by head, in float64 on a CPU and in float32 on a device."""
    wide = torch.float32 if q.is_cuda else torch.float64
    out = torch.empty(q.shape, dtype=wide, device=q.device)
    for row in range(q.shape[0]):
        count = k.shape[1] if valid is None else int(valid[row])
        for head in range(q.shape[2]):
            logits = q[row, :, head].to(wide) @ k[row, :count, head].to(wide).T
            weights = torch.softmax(logits * q.shape[-1] ** -0.5, dim=-1)
            out[row, :, head] = weights @ v[row, :count, head].to(wide)
    return out


def _require_hopper():
    if not use_hopper(torch.empty(1, device="cuda", dtype=torch.bfloat16)):
        pytest.skip("needs the compiled kernels and a Hopper GPU")


@pytest.mark.parametrize("shape", [(2, 5, 30, 3, None), (3, 7, 12, 2, (1, 12, 5))])
def test_matches_softmax(shape):
    """Reference: softmax over the valid keys alone, in float64."""
    arguments = _inputs(shape, torch.float32, "cpu")
    ours, exact = ring_attention(*arguments).double(), _exact(*arguments)
    # What is not valid holds up to 1e4: an absolute 1e-5 means that none of it came through.
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)


def test_order_of_keys_does_not_matter():
    """Reference: the same ring, rolled by some frames."""
    q, k, v, _ = _inputs((1, 6, 40, 2, None), torch.float64, "cpu")
    rolled = ring_attention(q, k.roll(13, dims=1), v.roll(13, dims=1))
    torch.testing.assert_close(rolled, ring_attention(q, k, v), atol=1e-12, rtol=1e-12)


def test_unknown_implementation_is_refused():
    arguments = _inputs((1, 2, 3, 1, None), torch.float32, "cpu")
    with pytest.raises(AttentionError, match="'fastest'"):
        ring_attention(*arguments, implementation="fastest")


@pytest.mark.gpu
@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_implementations_are_as_good_as_sdpa(shape, spread, relative_error):
    """Reference: float32; at most twice the error of torch's own attention in bf16."""
    arguments = _inputs(shape, torch.bfloat16, "cuda", spread)
    with references():
        allowed = 2 * relative_error(ring_attention(*arguments), _exact(*arguments))
    for name in implementations(arguments[0], arguments[3]):
        ours = ring_attention(*arguments, implementation=name)
        assert relative_error(ours, _exact(*arguments)) <= allowed, name


@pytest.mark.gpu
@pytest.mark.parametrize("shape", RAGGED)
def test_ragged_shapes(shape, relative_error):
    """Reference: float32; at most twice the error of torch's own attention in bf16."""
    _require_hopper()
    arguments = _inputs(shape, torch.bfloat16, "cuda")
    exact = _exact(*arguments)
    allowed = max(2 * relative_error(ring_attention(*arguments), exact), 2**-9)
    assert relative_error(ring_attention(*arguments, COMPILED), exact) <= allowed


@pytest.mark.gpu
def test_results_repeat():
    """Tiles that several blocks of threads share are added up in one order, so bits repeat."""
    _require_hopper()
    arguments = _inputs(SHAPES[1], torch.bfloat16, "cuda")
    first = ring_attention(*arguments, COMPILED)
    for _ in range(10):
        assert torch.equal(ring_attention(*arguments, COMPILED), first)


@pytest.mark.gpu
def test_captured_once_for_every_valid_length(relative_error):
    """Reference: eager calls; the valid lengths change between replays of one graph."""
    _require_hopper()
    q, k, v, valid = _inputs((2, 200, 1000, 4, (1000, 1000)), torch.bfloat16, "cuda")
    assert valid is not None
    ring_attention(q, k, v, valid, COMPILED)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ring_attention(q, k, v, valid, COMPILED)
    for lengths in ((1, 1000), (640, 3), (176, 177)):
        valid.copy_(torch.tensor(lengths))
        graph.replay()
        expected = ring_attention(q, k, v, valid, COMPILED)
        assert torch.equal(captured, expected)
        assert relative_error(captured, _exact(q, k, v, valid)) <= 2**-7


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 70, 300, 3, None), (2, 70, 300, 3, (10, 300))])
def test_opcheck(shape):
    """The registration is sound: schema, no mutation, fake tensors."""
    _require_hopper()
    arguments = _inputs(shape, torch.bfloat16, "cuda")
    torch.library.opcheck(torch.ops.sdrt.ring_attention.default, arguments)


@pytest.mark.gpu
def test_any_precision_has_an_implementation():
    """Single precision is never given to the compiled kernel."""
    q, _, _, valid = _inputs((1, 8, 8, 1, (8,)), torch.float32, "cuda")
    assert implementations(q, valid) == (ANYWHERE,)
