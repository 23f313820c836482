"""One block of the causal Wan DiT over the K/V ring."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from sdrt.engine.dit.ring import queue_length, refresh_slot, ring_rows
from sdrt.engine.how import NOTHING, How
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import DitConfig
from sdrt.kernels.linear_gelu import linear_gelu
from sdrt.kernels.qk_norm_rope import qk_norm_rope, split_norm_rope
from sdrt.kernels.residual_norm import (
    Modulation,
    added_modulated_norm,
    gated,
    gated_affine_norm,
    modulated_norm,
    rms_norm,
)
from sdrt.kernels.ring_attention import ANYWHERE, ring_attention

SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 = range(6)
"""Rows of a block's modulation: of the self-attention, then of the feed-forward layers."""


class RMSNorm(nn.Module):
    """RMS norm over the last dimension, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Weights of the self-attention; q, k and v are one projection."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)


class CrossAttention(nn.Module):
    """Weights of the query side of the cross-attention."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.q = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)


class RingBlock(PackageModule):
    """What every block does first: its self-attention's K and V go into the ring."""

    def __init__(
        self,
        config: DitConfig,
        batch: int,
        tokens_per_frame: int,
        window: int,
        sink: int,
        refresh_threshold: float = -1.0,
    ) -> None:
        """Build the part.

        Args:
            sink: frames that an adaptive sink compares; unlike the slots that are never
                overwritten, they may be fewer than three.
            refresh_threshold: adaptive sink; below 0 it is off and ring rows come from outside.
        """
        super().__init__()
        self.config, self.batch, self.tokens = config, batch, tokens_per_frame
        self.window, self.sink, self.threshold = window, sink, refresh_threshold
        self.heads = (config.num_heads, config.head_dim)
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))
        self.self_attn = SelfAttention(config)

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """K and V rings ``[B*W, T, H, D]``; with an adaptive sink also its overwrite queue."""
        config, dtype = self.config, self.modulation.dtype
        shape = (self.batch * self.window, self.tokens, config.num_heads, config.head_dim)
        states = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("k", "v")}
        if self.threshold >= 0:
            length = queue_length(self.window, self.batch)
            integer = {"dtype": torch.int64, "device": device}
            states["queue"] = torch.zeros(self.batch, length, **integer)
            states["count"] = torch.zeros(self.batch, **integer)
        return states

    def roles(self) -> dict[str, Any]:
        return {"k": "kv", "v": "kv", "queue": "queue", "count": "count"}

    def projection(self, x: Tensor, e0: Tensor) -> Tensor:
        """Return q, k and v of the tokens, side by side, neither normalised nor rotated."""
        modulation = Modulation(self.modulation, e0)
        return self.self_attn.qkv(modulated_norm(x, modulation, SHIFT1, SCALE1, self.config.eps))

    def write_ring(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Tensor,
        position: Tensor,
        states: dict[str, Tensor],
    ) -> Tensor:
        """Write the chunk's K and V into the ring; return q ``[B, N, H, D]``.

        Args:
            qkv: ``[B, N, 3 dim]``, neither normalised nor rotated.
        """
        attn, eps = self.self_attn, self.config.eps
        norms = (attn.norm_q.weight, attn.norm_k.weight)
        if self.threshold < 0:
            return qk_norm_rope(qkv, *norms, cos, sin, rows, states["k"], states["v"], eps)
        q, k, v = split_norm_rope(qkv, *norms, cos, sin, self.heads, eps)
        rows = self.refreshed_rows(k, v, position, states)
        for name, new in (("k", k), ("v", v)):
            states[name].index_copy_(0, rows, new.reshape(-1, self.tokens, *self.heads))
        return q

    def refreshed_rows(
        self, k: Tensor, v: Tensor, position: Tensor, states: dict[str, Tensor]
    ) -> Tensor:
        """Return the ring rows that the adaptive sink chooses for k and v ``[B, T, H, D]``."""
        slot, queue, count = refresh_slot(
            k,
            v,
            self.ring_frames(states["k"]),
            self.ring_frames(states["v"]),
            position,
            states["queue"],
            states["count"],
            self.sink,
            self.threshold,
        )
        states["queue"].copy_(queue)
        states["count"].copy_(count)
        return self.slot_rows(slot)

    def ring_frames(self, ring: Tensor) -> Tensor:
        """Return a ring as ``[B, W, T, H, D]``."""
        return ring.view(self.batch, self.window, self.tokens, *self.heads)

    def slot_rows(self, slot: Tensor) -> Tensor:
        """Return slots ``[B, 1]`` as the ring's rows."""
        return ring_rows(slot, self.window)


class DitBlock(RingBlock):
    """One transformer block over the K/V ring; one compiled block serves every layer."""

    def __init__(
        self,
        config: DitConfig,
        batch: int,
        tokens_per_frame: int,
        window: int,
        sink: int,
        phase: str,
        refresh_threshold: float = -1.0,
        how: How = NOTHING,
    ) -> None:
        """Build a block.

        Args:
            sink: frames that an adaptive sink compares; unlike the slots that are never
                overwritten, they may be fewer than three.
            phase: ``first``, ``filling`` or ``steady``, in which the window is full in every row,
                so that attention needs no valid length.
            refresh_threshold: adaptive sink; below 0 it is off and ring rows come from outside.
            how: place -> implementation: of the attention, over the ring in each phase
                (``dit.attention.ring.<phase>``), over the prompt for the first chunk and later
                ones (``dit.attention.text.first``, ``….chunk``).
        """
        super().__init__(config, batch, tokens_per_frame, window, sink, refresh_threshold)
        self.full, shape = phase == "steady", "first" if phase == "first" else "chunk"
        self.attention = how.get(f"dit.attention.ring.{phase}", ANYWHERE)
        self.text_attention = how.get(f"dit.attention.text.{shape}", ANYWHERE)
        dim = config.dim
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def forward(
        self,
        x: Tensor,
        e0: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Tensor,
        valid: Tensor,
        position: Tensor,
        cross_k: Tensor,
        cross_v: Tensor,
        *,
        states: dict[str, Tensor],
    ) -> Tensor:
        """Return the residual stream after the block.

        Args:
            x, e0, cos, sin, rows, valid, position: as :class:`DitIn` takes and returns them.
            cross_k, cross_v: ``[1, text_len, H, D]`` of :class:`CrossKV`.
        """
        modulation, eps = Modulation(self.modulation, e0), self.config.eps
        out = self.attend_ring(self.projection(x, e0), cos, sin, rows, valid, position, states)
        out, norm = self.self_attn.o(out), self.norm3
        x, hidden = gated_affine_norm(x, out, modulation, GATE1, norm.weight, norm.bias, eps)

        # Every row sees the same text, so the rows are folded into one query sequence.
        cross = self.cross_attn
        q = cross.norm_q(cross.q(hidden)).unflatten(-1, self.heads)
        out = cross.o(self.attend_text(q.flatten(0, 1).unsqueeze(0), cross_k, cross_v).view_as(x))
        x, hidden = added_modulated_norm(x, out, modulation, SHIFT2, SCALE2, eps)

        up = cast(nn.Linear, self.ffn[0])
        hidden = linear_gelu(hidden, up.weight, up.bias)
        return gated(x, self.ffn[2](hidden), modulation, GATE2)

    def attend_ring(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Tensor,
        valid: Tensor,
        position: Tensor,
        states: dict[str, Tensor],
    ) -> Tensor:
        """Write the chunk's K and V into the ring, attend to what it holds: ``[B, N, dim]``.

        Args:
            qkv: ``[B, N, 3 dim]``, neither normalised nor rotated.
        """
        q = self.write_ring(qkv, cos, sin, rows, position, states)
        ring = (self.batch, self.window * self.tokens, *self.heads)
        k, v = states["k"].view(ring), states["v"].view(ring)
        return ring_attention(q, k, v, None if self.full else valid, self.attention).flatten(2)

    def attend_text(self, q: Tensor, cross_k: Tensor, cross_v: Tensor) -> Tensor:
        """Attend to the prompt with q ``[1, B*N, H, D]``; return ``[1, B*N, dim]``."""
        return ring_attention(q, cross_k, cross_v, None, self.text_attention).flatten(2)


class DitKeys(RingBlock):
    """The last block of a clean pass, of which nothing but the K and V is of use."""

    def forward(
        self,
        x: Tensor,
        e0: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Tensor,
        position: Tensor,
        *,
        states: dict[str, Tensor],
    ) -> tuple[()]:
        """Overwrite the chunk's K and V; the arguments are :class:`DitBlock`'s."""
        self.write_ring(self.projection(x, e0), cos, sin, rows, position, states)
        return ()
