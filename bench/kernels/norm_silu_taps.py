"""Time of ``norm_silu_taps`` at the Wan VAE's layers (832x480): python -m …norm_silu_taps."""

from functools import partial

import torch

from sdrt.bench.kernels.harness import copy_tb_s, graph_us, report
from sdrt.kernels.dispatch import references
from sdrt.kernels.measure import relative_error
from sdrt.kernels.norm_silu_taps import norm_silu_taps

LAYERS = [
    (4, 96, 480, 832, True),
    (4, 192, 240, 416, False),
    (2, 384, 120, 208, True),
    (1, 384, 60, 104, True),
]


def main() -> None:
    """Check each layer against the plain version, then time both."""
    roof = copy_tb_s()
    for frames, channels, height, width, stacked in LAYERS:

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

        x = draw(frames, height, width, channels).permute(0, 3, 1, 2)
        history = draw(2, height, width, channels).permute(0, 3, 1, 2)
        gamma, bias = draw(channels), draw(channels)
        ours = norm_silu_taps(x, gamma, history.clone(), bias, stacked)
        with references():
            plain = norm_silu_taps(x, gamma, history.clone(), bias, stacked)
        error = relative_error(ours, plain)
        assert error < 1e-2, error
        moved = x.nbytes + ours.nbytes + 2 * history.nbytes

        run = partial(norm_silu_taps, x, gamma, history, bias, stacked)
        title = f"{frames}x{height}x{width} {channels} ch {'stacked' if stacked else 'joined'}"
        report(title, graph_us(run), moved, roof)
        with references():
            report(f"  plain: {title}", graph_us(run), moved, roof)


if __name__ == "__main__":
    main()
