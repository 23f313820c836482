"""Lanes: stages of one AR step on their own streams, in the right order."""

import pytest
import torch

from sdrt.runtime.streams import LANES, Lanes


def test_on_a_cpu_lanes_are_empty() -> None:
    lanes = Lanes(torch.device("cpu"))
    lanes.wait("never recorded")
    for lane in (*LANES, "prompt", "finalize"):
        assert lanes.stream(lane) is None
        with lanes.on(lane):
            lanes.record(lane)
    lanes.synchronize()


@pytest.mark.gpu
def test_groups_share_three_streams() -> None:
    """The prompt's stage and the clean pass belong to the DiT; later lanes come first."""
    lanes = Lanes(torch.device("cuda"))
    streams = [lanes.stream(lane) for lane in LANES]
    assert all(stream is not None for stream in streams) and len(set(streams)) == 3
    assert lanes.stream("prompt") == lanes.stream("finalize") == lanes.stream("diffuse")
    priorities = [stream.priority for stream in streams if stream is not None]
    assert priorities == sorted(priorities, reverse=True)


@pytest.mark.gpu
def test_without_overlap_there_is_one_stream() -> None:
    lanes = Lanes(torch.device("cuda"), overlap=False)
    assert len({lanes.stream(lane) for lane in LANES}) == 1


@pytest.mark.gpu
def test_a_lane_waits_for_what_was_recorded() -> None:
    """Reference: the value that the other stream writes late."""
    lanes = Lanes(torch.device("cuda"))
    value = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    with lanes.on("encode"):
        torch.cuda._sleep(50_000_000)
        value.fill_(3)
        lanes.record("filled")
    with lanes.on("diffuse"):
        lanes.wait("filled")
        seen = value + 1
    lanes.synchronize()
    assert seen.item() == 4
