"""The causal Wan DiT, cut into modules for export: embeddings, one block, head and text side."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdrt.engine.config import DitConfig
from sdrt.engine.ring import (
    queue_length,
    refresh_slot,
    ring_rows,
    ring_slots,
    valid_tokens,
)
from sdrt.engine.schedule import add_noise, flow_table, nearest_sigma
from sdrt.engine.stage import StageModule
from sdrt.kernels.linear_gelu import linear_gelu
from sdrt.kernels.qk_norm_rope import qk_norm_rope, split_norm_rope


class RMSNorm(nn.Module):
    """RMS norm over the last dimension, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + self.eps)
        return (x32 * self.weight.float()).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return ``norm(x) * (1 + scale) + shift`` in ``x``'s dtype, computed in float32.

    Args:
        x: ``[B, N, C]``; shift, scale: float32 ``[B, E, C]``, each for N / E tokens of ``x``.
    """
    normed = F.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    normed = normed.unflatten(1, (shift.shape[1], -1))
    return (normed * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2).to(x.dtype)


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """Return ``x + gate * update`` in ``x``'s dtype; ``gate`` is float32 ``[B, E, C]``."""
    scaled = update.float().unflatten(1, (gate.shape[1], -1)) * gate.unsqueeze(2)
    return (x.float() + scaled.flatten(1, 2)).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax attention, heads merged: q ``[B, N, H, D]``, k and v ``[B, M, H, D]``."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2).flatten(2)


class DitIn(StageModule):
    """Everything of one DiT pass that comes before the blocks."""

    plane_cos: Tensor
    plane_sin: Tensor
    frame_frequencies: Tensor
    time_frequencies: Tensor

    def __init__(
        self, config: DitConfig, height: int, width: int, frames: int, window: int, sink: int
    ) -> None:
        """Size the module for ``[B, frames]`` latents of ``height`` x ``width`` (latent pixels)."""
        super().__init__()
        self.config, self.frames, self.window, self.sink = config, frames, window, sink
        self.rows, self.columns = height // 2, width // 2
        dim = config.dim
        self.patch_embedding = nn.Linear(config.in_dim * math.prod(config.patch_size), dim)
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        half = config.head_dim // 2
        third = half // 3
        self.axis_widths = (half - 2 * third, third, third)
        # Tables are made on the CPU whatever the default device: a plan builds modules on "meta".
        rows = torch.arange(self.rows, device="cpu").view(-1, 1, 1).expand(-1, self.columns, 1)
        columns = torch.arange(self.columns, device="cpu").view(1, -1, 1).expand(self.rows, -1, 1)
        plane = torch.cat([rows * rope_frequencies(third), columns * rope_frequencies(third)], -1)
        plane = plane.flatten(0, 1)  # [T, 2 * third], float64
        self.register_buffer("plane_cos", plane.cos().float())
        self.register_buffer("plane_sin", plane.sin().float())
        self.register_buffer("frame_frequencies", rope_frequencies(self.axis_widths[0]))
        self.register_buffer("time_frequencies", sinusoid_frequencies(config.freq_dim))

    def forward(self, latent: Tensor, timestep: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """Embed one chunk a row.

        Args:
            latent: float32 ``[B, F, 16, h, w]``, at the noise level of ``timestep``.
            timestep: float32 ``[B, 1]`` or ``[B, F]``.
            position: int64 ``[B]``, absolute index of each row's first frame.
        Returns:
            x ``[B, F*T, dim]``; e ``[B, E, dim]`` float32; e0 ``[B, E, 6, dim]`` float32;
            cos, sin ``[B, F*T, D/2]`` float32; ring rows int64 ``[B*F]``; valid tokens ``[B]``.
        """
        dtype = self.patch_embedding.weight.dtype
        batch, frames = latent.shape[:2]
        patches = latent.view(batch, frames, -1, self.rows, 2, self.columns, 2)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).reshape(
            batch, frames * self.rows * self.columns, -1
        )
        x = self.patch_embedding(patches.to(dtype))

        e = self.time_embedding(torch.cat(self.time_angles(timestep), dim=-1).to(dtype))
        e0 = self.time_projection(e).unflatten(-1, (6, -1))

        frame_cos, frame_sin = self.frame_angles(position)
        cos = self._with_plane(frame_cos.float(), self.plane_cos)
        sin = self._with_plane(frame_sin.float(), self.plane_sin)
        rows = self.ring_places(position)
        valid = valid_tokens(position, frames, self.window, self.rows * self.columns)
        return x, e.float(), e0.float(), cos, sin, rows, valid

    def time_angles(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``[B, E, freq_dim / 2]`` of the timestep sinusoid."""
        angle = timestep.double().unsqueeze(-1) * self.time_frequencies
        return angle.cos(), angle.sin()

    def frame_angles(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``[B, F, c0]`` of the chunk's frame positions."""
        frame = position.unsqueeze(1) + torch.arange(self.frames, device=position.device)
        angle = frame.double().unsqueeze(-1) * self.frame_frequencies
        return angle.cos(), angle.sin()

    def ring_places(self, position: Tensor) -> Tensor:
        """Return where the chunk's K and V go in the ring, as the blocks take it."""
        slots = ring_slots(position, self.frames, self.window, self.sink)
        return ring_rows(slots, self.window)

    def _with_plane(self, frame: Tensor, plane: Tensor) -> Tensor:
        """Join frame angles ``[B, F, c0]`` and row/column angles ``[T, c1+c2]``."""
        batch, frames, tokens = *frame.shape[:2], plane.shape[0]
        joined = torch.cat(
            [
                frame.unsqueeze(2).expand(-1, -1, tokens, -1),
                plane.expand(batch, frames, -1, -1),
            ],
            dim=-1,
        )
        return joined.flatten(1, 2)


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


class DitBlock(StageModule):
    """One transformer block over the K/V ring; one compiled block serves every layer."""

    def __init__(
        self,
        config: DitConfig,
        batch: int,
        tokens_per_frame: int,
        window: int,
        sink: int,
        full: bool,
        refresh_threshold: float = -1.0,
    ) -> None:
        """Build a block.

        Args:
            full: the window is full in every row, so attention needs no valid length.
            refresh_threshold: adaptive sink; below 0 it is off and ring rows come from outside.
        """
        super().__init__()
        self.config, self.batch, self.tokens = config, batch, tokens_per_frame
        self.window, self.sink, self.full = window, sink, full
        self.threshold = refresh_threshold
        self.heads = (config.num_heads, config.head_dim)
        dim = config.dim
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )

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
        eps = self.config.eps
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + e0).unbind(2)
        qkv = self.self_attn.qkv(modulated_norm(x, shift1, scale1, eps))
        out = self.attend_ring(qkv, cos, sin, rows, valid, position, states)
        x = gated(x, self.self_attn.o(out), gate1)

        # Every row sees the same text, so the rows are folded into one query sequence.
        cross = self.cross_attn
        q = cross.norm_q(cross.q(self.norm3(x))).unflatten(-1, self.heads)
        out = self.attend_text(q.flatten(0, 1).unsqueeze(0), cross_k, cross_v)
        x = x + cross.o(out.view_as(x))

        hidden = modulated_norm(x, shift2, scale2, eps)
        up = cast(nn.Linear, self.ffn[0])
        hidden = linear_gelu(hidden, up.weight, up.bias)
        return gated(x, self.ffn[2](hidden), gate2)

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
        attn, eps = self.self_attn, self.config.eps
        norms = (attn.norm_q.weight, attn.norm_k.weight)
        if self.threshold < 0:
            q = qk_norm_rope(qkv, *norms, cos, sin, rows, states["k"], states["v"], eps)
        else:
            q, k, v = split_norm_rope(qkv, *norms, cos, sin, self.heads, eps)
            rows = self.refreshed_rows(k, v, position, states)
            for name, new in (("k", k), ("v", v)):
                states[name].index_copy_(0, rows, new.reshape(-1, self.tokens, *self.heads))
        ring = (self.batch, self.window * self.tokens, *self.heads)
        mask = None
        if not self.full:
            mask = torch.arange(ring[1], device=q.device) < valid.view(-1, 1, 1, 1)
        return attention(q, states["k"].view(ring), states["v"].view(ring), mask)

    def attend_text(self, q: Tensor, cross_k: Tensor, cross_v: Tensor) -> Tensor:
        """Attend to the prompt with q ``[1, B*N, H, D]``; return ``[1, B*N, dim]``."""
        return attention(q, cross_k, cross_v)

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


class DitHead(nn.Module):
    """Modulated norm, projection and unpatchify: tokens to flow."""

    def __init__(self, config: DitConfig, height: int, width: int) -> None:
        super().__init__()
        self.config, self.rows, self.columns = config, height // 2, width // 2
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the flow, float32 ``[B, F, 16, h, w]``."""
        shift, scale = (self.modulation.float() + e.unsqueeze(2)).unbind(2)
        flow = self.head(modulated_norm(x, shift, scale, self.config.eps)).float()
        flow = flow.view(x.shape[0], -1, self.rows, self.columns, 2, 2, self.config.out_dim)
        return flow.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


class DitOut(StageModule):
    """Head, flow to x0, and re-noising to the next denoise step."""

    sigmas: Tensor
    timesteps: Tensor

    def __init__(
        self, config: DitConfig, height: int, width: int, shift: float, timesteps: int = 1000
    ) -> None:
        super().__init__()
        self.head = DitHead(config, height, width)
        sigmas, table = flow_table(shift, timesteps)
        self.register_buffer("sigmas", sigmas)
        self.register_buffer("timesteps", table)

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        latent: Tensor,
        timestep: Tensor,
        next_sigma: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Return the latent at the next noise level; with ``next_sigma`` 0, the finished x0.

        Args:
            latent, noise: float32 ``[B, F, 16, h, w]``; timestep: float32 ``[B, 1]``.
            next_sigma: float32 ``[B]``.
        """
        sigma = nearest_sigma(timestep, self.sigmas, self.timesteps)
        x0 = latent - sigma.view(-1, sigma.shape[1], 1, 1, 1) * self.head(x, e)
        return add_noise(x0, noise, next_sigma)


class TextEmbedding(StageModule):
    """Project prompt embeddings to the DiT's width."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim),
            nn.GELU("tanh"),
            nn.Linear(config.dim, config.dim),
        )

    def forward(self, prompt_embeds: Tensor) -> Tensor:
        """Return the context ``[1, text_len, dim]`` of float32 ``[1, text_len, text_dim]``."""
        first = cast(nn.Linear, self.text_embedding[0])
        return self.text_embedding(prompt_embeds.to(first.weight.dtype))


class CrossKV(StageModule):
    """Cross-attention keys and values of one layer: they depend on the prompt only."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.head_dim)
        self.kv = nn.Linear(config.dim, 2 * config.dim)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return k and v, ``[1, text_len, H, D]``."""
        k, v = self.kv(context).chunk(2, dim=-1)
        return self.norm_k(k).unflatten(-1, self.heads), v.unflatten(-1, self.heads)


def rope_frequencies(pairs: int) -> Tensor:
    """Return float64 ``[pairs]`` rotary frequencies, base 10000, of one axis."""
    return 10000.0 ** -(torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)


def sinusoid_frequencies(width: int) -> Tensor:
    """Return float64 ``[width / 2]`` frequencies of the timestep sinusoid."""
    half = width // 2
    return 10000.0 ** -(torch.arange(half, dtype=torch.float64, device="cpu") / half)
