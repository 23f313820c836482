"""Time of a single operation: many input sets in turn, so that no cache holds them."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for arguments in (sets[0], sets[1]):
            function(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for arguments in sets:
            function(*arguments)
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(sets))
    graph.reset()
    return sorted(times)[REPLAYS // 2]


def _called(function: Callable[..., object], arguments: Arguments) -> float:
    function(*arguments)
    times = []
    for _ in range(REPLAYS):
        begin = time.perf_counter()
        function(*arguments)
        times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times)[REPLAYS // 2]
