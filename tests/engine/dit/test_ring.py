"""Ring bookkeeping against plain lists of frames."""

import pytest
import torch

from sdrt.engine.dit.ring import queue_length, refresh_slot, ring_rows, ring_slots, valid_tokens


@pytest.mark.parametrize(
    ("window", "sink", "chunk"), [(6, 3, 1), (12, 3, 3), (9, 3, 3), (10, 1, 3), (21, 0, 3)]
)
def test_ring_holds_the_sink_and_the_latest_frames(window, sink, chunk):
    """Reference: a list that drops its oldest frame outside the sink."""
    slots, kept = [-1] * window, []
    for position in range(0, 5 * window, chunk):
        for offset, slot in enumerate(
            ring_slots(torch.tensor([position]), chunk, window, sink)[0].tolist()
        ):
            slots[slot] = position + offset
            kept.append(position + offset)
            if len(kept) > window:
                del kept[sink]
        assert sorted(frame for frame in slots if frame >= 0) == kept
        assert valid_tokens(torch.tensor([position]), chunk, window, 7).item() == 7 * len(kept)


def test_rows_of_a_batch_do_not_meet():
    """Reference: row i of the batch owns ring rows i * window to (i + 1) * window - 1."""
    slots = ring_slots(torch.tensor([4, 9]), 1, 6, 3)
    assert ring_rows(slots, 6).tolist() == [4, 6 + 3]


class Queue:
    """The reference's overwrite queue, kept as a Python list."""

    def __init__(self, window: int, sink: int) -> None:
        self.window, self.sink, self.entries = window, sink, []

    def slot(self, position: int, stale: int | None) -> int:
        if stale is not None:
            self.entries.insert(0, stale)
        if position >= self.window:
            head = self.entries.pop(0)
            if head >= self.sink:
                self.entries.append(head)
            return head
        announced = position + 1
        fresh = not self.entries or self.entries[-1] != announced
        if announced + 1 > self.sink and announced < self.window and fresh:
            self.entries.append(announced)
        return position


@pytest.mark.parametrize("sink", [1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_adaptive_sink_follows_the_queue(threshold, sink):
    """Reference: a Python list as the public implementation keeps it, two rows out of step."""
    window, tokens = 6, 4
    generator = torch.Generator().manual_seed(5)
    keys = torch.zeros(2, window, tokens, 1, 8)
    values = torch.zeros_like(keys)
    queue = torch.zeros(2, queue_length(window, 2), dtype=torch.int64)
    count = torch.zeros(2, dtype=torch.int64)
    queues = [Queue(window, sink), Queue(window, sink)]
    refreshed = 0
    for step in range(30):
        position = torch.tensor([2 + step, 2 + max(0, step - 1)])
        k, v = (torch.randn(2, tokens, 1, 8, generator=generator) + 0.7 for _ in range(2))
        expected = []
        for row in range(2):
            cosines = []
            for new, ring in ((k, keys), (v, values)):
                mean = new[row].mean(0).flatten()
                sinks = ring[row, :sink].mean(1).flatten(1)
                cosines.append(torch.cosine_similarity(sinks, mean[None], dim=-1))
            similarity = (cosines[0] + cosines[1]) / 2
            stale = int(similarity.argmin()) if similarity.min() < threshold else None
            refreshed += stale is not None
            expected.append(queues[row].slot(int(position[row]), stale))
        slot, queue, count = refresh_slot(
            k, v, keys, values, position, queue, count, sink, threshold
        )
        assert slot.squeeze(1).tolist() == expected
        for row in range(2):
            assert queue[row, : count[row]].tolist() == queues[row].entries
            keys[row, slot[row, 0]], values[row, slot[row, 0]] = k[row], v[row]
    assert refreshed
