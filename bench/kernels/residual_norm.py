"""Time of ``residual_norm`` at the presets' sizes: python -m sdrt.bench.kernels.residual_norm."""

from functools import partial

import torch

from sdrt.bench.kernels.harness import copy_tb_s, graph_us, report
from sdrt.kernels.dispatch import references
from sdrt.kernels.measure import relative_error
from sdrt.kernels.residual_norm import (
    Modulation,
    added_modulated_norm,
    gated_affine_norm,
    modulated_norm,
    rms_norm,
)

SIZES = [("1.3B stream batch", 2, 1560, 1536), ("1.3B rollout", 1, 4680, 1536)]
SIZES += [("14B stream batch", 2, 1560, 5120)]
EPS = 1e-6


def main() -> None:
    """Check each op against the plain version, then time both; the plain one is compiled."""
    roof = copy_tb_s()
    for name, rows, tokens, width in SIZES:

        def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.randn(shape, device="cuda").to(dtype)

        x, update = draw(rows, tokens, width), draw(rows, tokens, width)
        timestep = draw(rows, 1, 6, width, dtype=torch.float32)
        modulation = Modulation(draw(1, 6, width), timestep)
        weight, bias = draw(width), draw(width)
        for function, arguments, tensors in (
            (modulated_norm, (x, modulation, 0, 1, EPS), 2),
            (gated_affine_norm, (x, update, modulation, 2, weight, bias, EPS), 4),
            (added_modulated_norm, (x, update, modulation, 3, 4, EPS), 4),
            (rms_norm, (x, weight, EPS), 2),
        ):
            run = partial(function, *arguments)
            ours = run()
            with references():
                plain = run()
                torch._dynamo.reset()  # or it gives up on compiling the next size
                compiled = torch.compile(run, dynamic=False)
                compiled()
                before = graph_us(compiled)
            for a, b in zip(_tuple(ours), _tuple(plain), strict=True):
                error = relative_error(a, b)
                assert error < 1e-2, (function.__name__, error)
            title = f"{name}: {function.__name__}"
            report(title, graph_us(run), tensors * x.nbytes, roof)
            report("  compiled by torch", before, tensors * x.nbytes, roof)


def _tuple(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


if __name__ == "__main__":
    main()
