"""Captured calls: how often they run."""

from functools import partial

import pytest
import torch

from sdrt.kernels.measure import capture, replay_ms


@pytest.mark.gpu
def test_a_replay_runs_the_calls() -> None:
    """Reference: a count on the device. Calls do not run while they are captured."""
    count = torch.zeros((), device="cuda")
    graph = capture([partial(count.add_, 10)] * 3, warm_up=[partial(count.add_, 1)] * 2)
    assert count.item() == 2 * 1 + 3 * 10
    assert replay_ms(graph) > 0
    assert count.item() == 2 * 1 + 2 * 3 * 10
