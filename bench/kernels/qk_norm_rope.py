"""Time of ``qk_norm_rope`` at the presets' sizes: python -m sdrt.bench.kernels.qk_norm_rope."""

from functools import partial

import torch

from sdrt.bench.kernels.harness import copy_tb_s, graph_us, report
from sdrt.kernels.dispatch import references
from sdrt.kernels.measure import relative_error
from sdrt.kernels.qk_norm_rope import qk_norm_rope

TOKENS = 1560
SIZES = [("1.3B stream batch", 2, 1, 6, 12), ("1.3B rollout", 1, 3, 12, 12), ("14B", 2, 1, 6, 40)]
WIDTH = 128


def main() -> None:
    """Check each size against the plain version, then time both."""
    roof = copy_tb_s()
    for name, batch, frames, window, heads in SIZES:

        def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.randn(shape, device="cuda").to(dtype)

        length = frames * TOKENS
        qkv = draw(batch, length, 3 * heads * WIDTH)
        norms = draw(heads * WIDTH), draw(heads * WIDTH)
        angle = draw(batch, length, WIDTH // 2, dtype=torch.float32)
        rows = torch.arange(batch * frames, device="cuda") * (window if frames == 1 else 1)
        k_ring, v_ring = (draw(batch * window, TOKENS, heads, WIDTH) for _ in range(2))
        arguments = (qkv, *norms, angle.cos(), angle.sin(), rows)
        ours = qk_norm_rope(*arguments, k_ring.clone(), v_ring.clone(), 1e-6)
        with references():
            plain = qk_norm_rope(*arguments, k_ring.clone(), v_ring.clone(), 1e-6)
        error = relative_error(ours, plain)
        assert error < 1e-2, error

        run = partial(qk_norm_rope, *arguments, k_ring, v_ring, 1e-6)
        report(name, graph_us(run), 2 * qkv.nbytes, roof)
        with references():
            report(f"  plain: {name}", graph_us(run), 2 * qkv.nbytes, roof)


if __name__ == "__main__":
    main()
