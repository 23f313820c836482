"""Time of ``ring_attention`` at the presets' sizes: python -m sdrt.bench.kernels.ring_attention."""

from functools import partial

import torch

from sdrt.bench.kernels.harness import graph_us
from sdrt.kernels.dispatch import references
from sdrt.kernels.measure import relative_error
from sdrt.kernels.ring_attention import implementations, ring_attention

# name, rows, queries, keys, heads, valid keys of each row
SIZES = [
    ("stream batch", 2, 1560, 9360, 12, None),
    ("stream batch, filling", 2, 1560, 9360, 12, (1560, 4680)),
    ("rollout", 1, 4680, 18720, 12, None),
    ("text, stream batch", 1, 3120, 512, 12, None),
    ("text, rollout", 1, 4680, 512, 12, None),
    ("14B stream batch", 2, 1560, 9360, 40, None),
    ("14B rollout", 1, 4680, 18720, 40, None),
]
WIDTH = 128


def product_tflop_s(size: int = 8192) -> float:
    """Return the device's bf16 matrix rate on random data: the roof of what follows."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / graph_us(lambda: torch.mm(a, b, out=out), calls=5) / 1e6


def main() -> None:
    """Check every implementation of each size against the plain version, then time them."""
    roof = product_tflop_s()
    for name, rows, queries, keys, heads, lengths in SIZES:

        def draw(length: int, rows: int = rows, heads: int = heads) -> torch.Tensor:
            return torch.randn(rows, length, heads, WIDTH, device="cuda", dtype=torch.bfloat16)

        valid = None if lengths is None else torch.tensor(lengths, device="cuda")
        arguments = (draw(queries), draw(keys), draw(keys), valid)
        counted = rows * keys if lengths is None else sum(lengths)
        tflop = 4 * queries * counted * heads * WIDTH / 1e12
        with references():
            plain = ring_attention(*arguments)
        for implementation in implementations(arguments[0], valid):
            run = partial(ring_attention, *arguments, implementation)
            error = relative_error(run(), plain)
            assert error < 1e-2, (implementation, error)
            us = graph_us(run)
            rate = tflop / us * 1e6
            title = f"{name}: {implementation}"
            print(f"{title:44s} {us:9.1f} us {rate:6.0f} TFLOP/s {100 * rate / roof:5.1f} %")


if __name__ == "__main__":
    main()
