"""One layer's K/V the way the public references keep them: rolled, or evicted by a host's list."""

import torch
import torch.nn.functional as F
from torch import Tensor

Visible = list[tuple[Tensor, Tensor]]
"""Keys and values ``[b, M, H, D]`` that attention sees: one pair for all rows, or one a row."""


class RolledCache:
    """Self-Forcing's: a full cache is moved to the left, and the chunk goes to its right end."""

    def __init__(self, window: int, sink: int, tokens: int, like: Tensor) -> None:
        """Allocate room for ``window`` frames of ``tokens`` tokens, as ``like`` ``[.., H, D]``."""
        shape = (1, window * tokens, *like.shape[-2:])
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.sink = sink * tokens
        self.tokens = tokens
        self.global_end = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.local_end = torch.zeros(1, dtype=torch.int64, device=like.device)

    def append(self, k: Tensor, v: Tensor, positions: Tensor) -> Visible:
        """Write a chunk ``[1, N, H, D]`` and return what it sees; a repeated chunk overwrites.

        Args:
            positions: int64 ``[1]`` on the device, the chunk's first frame.
        """
        new, size = k.shape[1], self.k.shape[1]
        end = int(positions[0].item()) * self.tokens + new
        added = end - int(self.global_end.item())
        local_end = int(self.local_end.item()) + added
        if local_end > size:
            evicted, sink = local_end - size, self.sink
            for cache in (self.k, self.v):
                kept = cache[:, sink + evicted : local_end - added].clone()
                cache[:, sink : sink + kept.shape[1]] = kept
            local_end = size
        self.k[:, local_end - new : local_end] = k
        self.v[:, local_end - new : local_end] = v
        self.global_end.fill_(end)
        self.local_end.fill_(local_end)
        return [(self.k[:, :local_end], self.v[:, :local_end])]


class EvictedCache:
    """StreamDiffusionV2's: a cache a row, whose next slot comes from a list on the host."""

    def __init__(self, window: int, sink: int, threshold: float, tokens: int, like: Tensor) -> None:
        """Allocate one row.

        Args:
            sink: the preset's; overwriting starts at frame 3 even if it is smaller.
            threshold: of the adaptive sink; below 0 it is off.
            like: ``[.., H, D]``, of the cache's type.
        """
        shape = (1, window * tokens, *like.shape[-2:])
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.window, self.sink, self.threshold, self.tokens = window, sink, threshold, tokens
        self.queues: list[list[int]] = [[]]

    def repeat(self, rows: int) -> None:
        """Give every row of the stream batch what the first chunk left in row 0."""
        self.k, self.v = self.k.repeat(rows, 1, 1, 1), self.v.repeat(rows, 1, 1, 1)
        self.queues = [[] for _ in range(rows)]

    def append(self, k: Tensor, v: Tensor, positions: Tensor) -> Visible:
        """Write each row's frames ``[B, F * T, H, D]`` and return what the rows see.

        Args:
            positions: int64 ``[B]`` on the device, each row's first frame; read by the host.
        """
        frames, tokens = k.shape[1] // self.tokens, self.tokens
        valid = []
        for row in range(k.shape[0]):
            position = int(positions[row].item())
            for frame in range(frames):
                part = slice(frame * tokens, (frame + 1) * tokens)
                slot = self._slot(row, position + frame, k[row, part], v[row, part], frames == 1)
                self.k[row, slot * tokens : (slot + 1) * tokens] = k[row, part]
                self.v[row, slot * tokens : (slot + 1) * tokens] = v[row, part]
            valid.append(min(position + frames, self.window) * tokens)
        if len(set(valid)) == 1:
            return [(self.k[:, : valid[0]], self.v[:, : valid[0]])]
        return [
            (self.k[row : row + 1, :end], self.v[row : row + 1, :end])
            for row, end in enumerate(valid)
        ]

    def _slot(self, row: int, position: int, k: Tensor, v: Tensor, may_refresh: bool) -> int:
        queue = self.queues[row]
        if may_refresh and self.threshold >= 0:
            stale = self._stale_sink(row, k, v)
            if stale is not None:
                queue.insert(0, stale)
        if position < self.window:
            following = position + 1  # announced once, although rows may repeat a position
            if max(3, self.sink) <= following < self.window and queue[-1:] != [following]:
                queue.append(following)
            return position
        slot = queue.pop(0)
        if slot >= self.sink:
            queue.append(slot)
        return slot

    def _stale_sink(self, row: int, k: Tensor, v: Tensor) -> int | None:
        """Return the sink slot least like the new frame, if it is less alike than the threshold."""
        end = self.sink * self.tokens
        similarity = torch.zeros(self.sink, device=k.device)
        for new, cache in ((k, self.k), (v, self.v)):
            known = cache[row, :end].float().unflatten(0, (self.sink, -1)).mean(1).flatten(1)
            mean = new.float().mean(0).flatten().unsqueeze(0)
            similarity += 0.5 * F.cosine_similarity(mean, known, dim=-1)
        stale = int(similarity.argmin().item())
        return stale if similarity[stale].item() < self.threshold else None
