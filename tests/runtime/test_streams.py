"""Streams: what runs beside each other, and events between them."""

import pytest
import torch

from sdrt.runtime.directory.order import Event
from sdrt.runtime.streams import STREAMS, Streams

FILLED = Event("value", "written", "encode")


def test_on_a_cpu_there_are_none() -> None:
    streams = Streams(torch.device("cpu"), [FILLED])
    assert not streams.are_ordered
    for name in STREAMS:
        assert streams.stream(name) is None
        with streams.on(name):
            pass
    streams.synchronize()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_events_that_nobody_records_are_refused(device: str) -> None:
    """A misspelt name is an error, not a wait that never happens."""
    streams = Streams(torch.device(device), [FILLED])
    other = FILLED._replace(buffer="valeu")
    with pytest.raises(KeyError):
        streams.wait(other)
    with pytest.raises(KeyError):
        streams.record(other)


@pytest.mark.gpu
def test_later_streams_come_first() -> None:
    streams = Streams(torch.device("cuda"), [])
    found = [streams.stream(name) for name in STREAMS]
    assert all(stream is not None for stream in found) and len(set(found)) == 3
    priorities = [stream.priority for stream in found if stream is not None]
    assert priorities == sorted(priorities, reverse=True)


@pytest.mark.gpu
def test_without_overlap_there_is_one_stream() -> None:
    streams = Streams(torch.device("cuda"), [FILLED], overlap=False)
    assert len({streams.stream(name) for name in STREAMS}) == 1 and not streams.are_ordered


@pytest.mark.gpu
def test_a_stream_waits_for_what_was_recorded() -> None:
    """Reference: the value that the other stream writes late."""
    streams = Streams(torch.device("cuda"), [FILLED])
    value = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    with streams.on("encode"):
        torch.cuda._sleep(50_000_000)
        value.fill_(3)
        streams.record(FILLED)
    with streams.on("diffuse"):
        streams.wait(FILLED)
        seen = value + 1
    streams.synchronize()
    assert seen.item() == 4
