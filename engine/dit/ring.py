"""Ring bookkeeping on the device: which slot of the K/V ring a new frame overwrites."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ring_slots(position: Tensor, frames: int, window: int, sink: int) -> Tensor:
    """Return the slot of each frame of a chunk, int64 ``[B, frames]``.

    Frames fill slots in order; after that a new frame takes the oldest slot outside the sink.

    Args:
        position: int64 ``[B]``, absolute index of each row's first frame.
    """
    frame = position.unsqueeze(1) + torch.arange(frames, device=position.device)
    wrapped = sink + (frame - sink) % (window - sink)
    return torch.where(frame < window, frame, wrapped)


def ring_rows(slots: Tensor, window: int) -> Tensor:
    """Return ``slots`` ``[B, F]`` as rows, int64 ``[B * F]``, of a ring ``[B * window, ...]``."""
    batch = torch.arange(slots.shape[0], device=slots.device).unsqueeze(1)
    return (batch * window + slots).flatten()


def valid_tokens(position: Tensor, frames: int, window: int, tokens_per_frame: int) -> Tensor:
    """Return how many leading ring tokens hold keys once the chunk is written: int64 ``[B]``."""
    return (position + frames).clamp(max=window) * tokens_per_frame


def queue_length(window: int, batch: int) -> int:
    """Return the room an overwrite queue needs: its ring slots and one refresh a filling step."""
    return 2 * window + batch


def refresh_slot(
    new_key: Tensor,
    new_value: Tensor,
    key_ring: Tensor,
    value_ring: Tensor,
    position: Tensor,
    queue: Tensor,
    count: Tensor,
    sink: int,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the slot of one new frame under StreamDiffusionV2's adaptive sink.

    The means over tokens of the new keys and values are compared by cosine with those of every
    sink frame. If the least similar sink frame falls below ``threshold``, its slot goes to the
    head of the overwrite queue; a sink slot, once overwritten, does not return to the tail.

    Args:
        new_key, new_value: ``[B, T, H, D]``, one frame a row.
        key_ring, value_ring: ``[B, W, T, H, D]`` before the write.
        position: int64 ``[B]``, absolute frame index of each row.
        queue: int64 ``[B, Q]`` slots to overwrite next; only the first ``count`` entries count.
        count: int64 ``[B]``.
    Returns:
        ``(slot [B, 1], queue, count)``; the arguments are not changed.
    """
    window = key_ring.shape[1]
    similarity = 0.5 * (
        _sink_similarity(new_key, key_ring[:, :sink])
        + _sink_similarity(new_value, value_ring[:, :sink])
    )
    stale = similarity.argmin(dim=1, keepdim=True)
    refresh = (similarity.amin(dim=1, keepdim=True) < threshold).to(torch.int64)
    count = count.unsqueeze(1)
    pushed = torch.cat([stale, queue[:, :-1]], dim=1)
    queue = torch.where(refresh == 1, pushed, queue)
    count = count + refresh

    index = torch.arange(queue.shape[1], device=queue.device)
    position = position.unsqueeze(1)
    # Window full: take the head; a ring slot goes back to the tail.
    head = queue[:, :1]
    popped = torch.cat([queue[:, 1:], queue[:, -1:]], dim=1)
    returns = (head >= sink).to(torch.int64)
    tail = (index == count - 1) & (returns == 1)
    full_queue = torch.where(tail, head, popped)
    # Filling: the frame takes its own slot and announces the next one, once.
    announced = position + 1
    last = queue.gather(1, (count - 1).clamp(min=0))
    announce = (announced + 1 > sink) & (announced < window)
    announce = (announce & ((count == 0) | (last != announced))).to(torch.int64)
    filling_queue = torch.where((index == count) & (announce == 1), announced, queue)

    full = position >= window
    slot = torch.where(full, head, position)
    queue = torch.where(full, full_queue, filling_queue)
    count = torch.where(full, count - 1 + returns, count + announce)
    return slot, queue, count.squeeze(1)


def _sink_similarity(new: Tensor, sink: Tensor) -> Tensor:
    """Cosine ``[B, S]`` between a frame's token mean ``[B, T, H, D]`` and ``S`` sink frames'."""
    new_mean = new.float().mean(dim=1).flatten(1).unsqueeze(1)
    sink_mean = sink.float().mean(dim=2).flatten(2)
    return F.cosine_similarity(new_mean, sink_mean, dim=-1)
