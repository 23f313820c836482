"""The causal Wan DiT under its public names, written the way the public references run it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdrt.bench.baseline.kv_cache import EvictedCache, RolledCache
from sdrt.bench.baseline.rope import apply_rope, rope_tables
from sdrt.engine.preset.preset import DitConfig


class RmsNorm(nn.Module):
    """RMS norm over the whole width, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


class Projections(nn.Module):
    """The weights of one attention: four projections and two norms."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q = RmsNorm(config.dim, config.eps)
        self.norm_k = RmsNorm(config.dim, config.eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention, heads merged: q ``[B, N, H, D]``, k and v ``[B, M, H, D]``."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.head_dim)
        dim = config.dim
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        self.norm1 = nn.LayerNorm(dim, config.eps, elementwise_affine=False)
        self.self_attn = Projections(config)
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.cross_attn = Projections(config)
        self.norm2 = nn.LayerNorm(dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def project(self, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v ``[B, N, H, D]`` before the rotation."""
        shift, scale = self._modulation(e)[:2]
        y = _modulated(self.norm1(x), shift, scale)
        attn = self.self_attn
        q, k = attn.norm_q(attn.q(y)), attn.norm_k(attn.k(y))
        return (
            q.unflatten(-1, self.heads),
            k.unflatten(-1, self.heads),
            attn.v(y).unflatten(-1, self.heads),
        )

    def finish(self, x: Tensor, attended: Tensor, e: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add self-attention, cross-attention and feed-forward to the residual stream."""
        _, _, gate1, shift2, scale2, gate2 = self._modulation(e)
        x = x + _per_frame(self.self_attn.o(attended), gate1)
        cross = self.cross_attn
        q = cross.norm_q(cross.q(self.norm3(x))).unflatten(-1, self.heads)
        rows = x.shape[0]
        x = x + cross.o(attend(q, k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)))
        return x + _per_frame(self.ffn(_modulated(self.norm2(x), shift2, scale2)), gate2)

    def cross_kv(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompt's keys and values, ``[1, text_len, H, D]``."""
        cross = self.cross_attn
        k, v = cross.norm_k(cross.k(context)), cross.v(context)
        return k.unflatten(-1, self.heads), v.unflatten(-1, self.heads)

    def _modulation(self, e: Tensor) -> tuple[Tensor, ...]:
        return (self.modulation.unsqueeze(1) + e).unbind(2)


def _per_frame(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply ``[B, F * T, C]`` by ``[B, F, C]``."""
    return (x.unflatten(1, (factor.shape[1], -1)) * factor.unsqueeze(2)).flatten(1, 2)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    frames = x.unflatten(1, (scale.shape[1], -1))
    return (frames * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


class Head(nn.Module):
    """Modulated norm and projection."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map ``[B, F * T, C]`` and the time embedding ``[B, F, C]`` to patches."""
        shift, scale = (self.modulation.unsqueeze(1) + e.unsqueeze(2)).unbind(2)
        return self.head(_modulated(self.norm(x), shift, scale))


class CausalWanDit(nn.Module):
    """The whole model; a call is one denoise step of one chunk or of all rows of a batch."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.patch_embedding = nn.Conv3d(
            config.in_dim, dim, config.patch_size, stride=config.patch_size
        )
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.tables: tuple[Tensor, Tensor, Tensor] | None = None

    def layers(self) -> list[Block]:
        """Return the blocks in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def cross_caches(self, prompt_embeds: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return every layer's keys and values of a prompt ``[1, text_len, text_dim]``."""
        context = self.text_embedding(prompt_embeds.to(self.head.head.weight.dtype))
        return [block.cross_kv(context) for block in self.layers()]

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        positions: Tensor,
        caches: list[RolledCache] | list[EvictedCache],
        cross: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return the flow, float32 ``[B, F, C, h, w]``.

        Args:
            latent: float32 ``[B, F, C, h, w]``; timestep: ``[B, F]``; positions: int64 ``[B]``,
                each row's first frame, on the device.
            caches: one a layer; the chunk's K/V are written into them.
        """
        if self.tables is None:
            self.tables = rope_tables(self.config.head_dim, latent.device)
        dtype = self.head.head.weight.dtype
        x = self.patch_embedding(latent.transpose(1, 2).to(dtype))
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2)
        e = self.time_embedding(_sinusoid(timestep, self.config.freq_dim).to(dtype))
        e0 = self.time_projection(e).unflatten(-1, (6, -1))
        for block, cache, (k_text, v_text) in zip(self.layers(), caches, cross, strict=True):
            q, k, v = block.project(x, e0)
            q = apply_rope(q, grid, self.tables, positions)
            k = apply_rope(k, grid, self.tables, positions)
            visible = cache.append(k, v, positions)
            rows = q.split(1) if len(visible) > 1 else [q]
            out = [attend(row, *pair) for row, pair in zip(rows, visible, strict=True)]
            x = block.finish(x, torch.cat(out), e0, k_text, v_text)
        return self._unpatchify(self.head(x, e), grid).float()

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        frames, rows, columns = grid
        x = patches.view(-1, frames, rows, columns, 2, 2, self.config.out_dim)
        x = torch.einsum("bfhwpqc->bfchpwq", x)
        return x.reshape(-1, frames, self.config.out_dim, 2 * rows, 2 * columns)


def _sinusoid(timestep: Tensor, width: int) -> Tensor:
    half = width // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = timestep.to(torch.float64).unsqueeze(-1) * frequencies.to(timestep.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
