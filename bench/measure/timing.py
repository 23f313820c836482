"""Time of a single operation: many input sets in turn, so that no cache holds them."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sdrt.kernels.measure import capture, replay_ms

Arguments = tuple[Tensor, ...]
CACHE_BYTES = 160 << 20
"""Input sets together are at least this large: several times the L2 cache of a GPU."""
MOST_SETS = 16
REPLAYS = 7


def input_sets(make: Callable[[], Arguments], device: torch.device) -> list[Arguments]:
    """Return as many input sets as it takes to leave a GPU's cache; one on a CPU."""
    first = make()
    if device.type != "cuda":
        return [first]
    size = sum(tensor.numel() * tensor.element_size() for tensor in first)
    count = max(2, min(MOST_SETS, -(-CACHE_BYTES // size)))
    return [first, *(make() for _ in range(count - 1))]


def milliseconds(
    function: Callable[..., object], sets: Sequence[Arguments], device: torch.device
) -> float:
    """Return the median time of one call in ms.

    On CUDA a graph holds one call for each input set, which takes the launches out; the graph's
    replays are timed with events.
    """
    with torch.inference_mode():
        if device.type == "cuda":
            return _replayed(function, sets)
        return _called(function, sets[0])


def _replayed(function: Callable[..., object], sets: Sequence[Arguments]) -> float:
    calls = [partial(function, *arguments) for arguments in sets]
    graph = capture(calls, warm_up=calls[:2])
    return statistics.median(replay_ms(graph) for _ in range(REPLAYS)) / len(sets)


def _called(function: Callable[..., object], arguments: Arguments) -> float:
    function(*arguments)
    times = []
    for _ in range(REPLAYS):
        begin = time.perf_counter()
        function(*arguments)
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)
