"""Measuring kernels: calls as one CUDA graph, its replay's time, how far a result is off."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[[], object]


def capture(calls: Sequence[Call], warm_up: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """Return a graph of ``calls``, replayed once.

    The ``warm_up`` calls run before, as kernels load, and libraries make their plans, at the
    first launches.

    Raises:
        torch.OutOfMemoryError: a call needs more memory than there is.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in warm_up:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    """Replay a graph and return its time in ms."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ``||found - expected|| / ||expected||`` in float64."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
