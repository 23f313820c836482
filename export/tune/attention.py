"""Candidates for the DiT's attention, over the ring and over the prompt, at a preset's sizes."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sdrt.engine.preset.preset import Preset
from sdrt.export.tune.tunable import Candidates, Tunable
from sdrt.kernels.ring_attention import implementations, ring_attention


def attention_tunables(
    preset: Preset, device: torch.device, dtype: torch.dtype
) -> Iterator[Tunable]:
    """Yield the attention of each phase, over the ring, and of each chunk, over the prompt."""
    dit, stream, tokens = preset.dit, preset.stream, preset.tokens_per_frame
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        heads = (dit.num_heads, dit.head_dim)
        return torch.randn(*shape, *heads, generator=generator, device=device, dtype=dtype)

    def tunable(place: str, rows: int, frames: int, keys: int, masked: bool) -> Tunable:
        kind = (rows, frames, keys, masked)
        return Tunable(f"dit.attention.{place}", "dit", kind, partial(candidates, *kind))

    def candidates(rows: int, frames: int, keys: int, masked: bool) -> Candidates:
        q, k, v = (noise(rows, frames * tokens), noise(rows, keys), noise(rows, keys))
        valid = torch.full((rows,), keys, device=device) if masked else None
        return {
            name: lambda name=name: ring_attention(q, k, v, valid, name)
            for name in implementations(q, valid)
        }

    batched = preset.flow == "stream-batch"
    rows, chunk = len(preset.schedule.steps) if batched else 1, stream.chunk_latent_frames
    window = stream.window_frames * tokens
    first = preset.first_chunk_latent_frames
    if batched:
        yield tunable("ring.first", 1, first, window, True)
        yield tunable("text.first", 1, first, dit.text_len, False)
    yield tunable("ring.filling", rows, chunk, window, True)
    yield tunable("ring.steady", rows, chunk, window, False)
    # Every row sees the same text, so the rows are one query sequence.
    yield tunable("text.chunk", 1, rows * chunk, dit.text_len, False)
