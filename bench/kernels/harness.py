"""What the kernel benchmarks share: graph-timed medians, and the copy bandwidth as the roof."""

import statistics
from collections.abc import Callable

import torch

from sdrt.kernels.measure import capture, replay_ms

REPEATS = 30


def graph_us(run: Callable[[], object], calls: int = 10) -> float:
    """Return the median time of one call in µs: ``calls`` calls captured, replayed many times."""
    graph = capture([run] * calls, warm_up=[run] * 3)
    return statistics.median(replay_ms(graph) for _ in range(REPEATS)) * 1e3 / calls


def copy_tb_s(gib: float = 2.0) -> float:
    """Return the device's copy bandwidth in TB/s, bytes read and written counted.

    An element-wise kernel does it: a copy captured in a graph goes to a slower copy engine.
    """
    source = torch.randn(int(gib * 2**28), device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_us(lambda: torch.neg(source, out=target), calls=2) / 1e6


def report(title: str, us: float, moved_bytes: int, roof_tb_s: float) -> None:
    """Print one line: time, bandwidth and the share of the roof."""
    rate = moved_bytes / us / 1e6
    print(f"{title:44s} {us:9.1f} us {rate:6.2f} TB/s {100 * rate / roof_tb_s:5.1f} % of copy")
