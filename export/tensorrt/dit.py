"""The DiT as TensorRT takes it: no float64, the ring a K/V cache, a range of blocks one module."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdrt.engine.dit.block import DitBlock
from sdrt.engine.dit.embeddings import DitIn, rope_frequencies, sinusoid_frequencies
from sdrt.engine.dit.head import DitOut
from sdrt.engine.dit.ring import ring_slots
from sdrt.engine.dit.rows import ShiftRows
from sdrt.engine.dit.text import CrossKV, TextEmbedding
from sdrt.engine.module import PackageModule
from sdrt.export.tensorrt.settings import RingMode
from sdrt.kernels.qk_norm_rope import norm_rope

POSITIONS = 1024
"""Entries of each of the two position tables: frames up to their square are rotated exactly."""


class OnnxDitIn(DitIn):
    """Embeddings whose angles come out of tables: ``cos(a + b)`` from those of ``a`` and ``b``.

    TensorRT has no float64, and in float32 an angle of a few thousand radians is off by 1e-4. The
    tables are computed in float64, so that the sums of two entries are good to float32.
    """

    time_fraction: Tensor
    time_cos: Tensor
    time_sin: Tensor
    high_cos: Tensor
    high_sin: Tensor
    low_cos: Tensor
    low_sin: Tensor

    def __init__(self, *sizes, timesteps: int) -> None:
        """Take :class:`DitIn`'s sizes and the length of the timestep table."""
        super().__init__(*sizes)
        whole = torch.arange(timesteps + 1, dtype=torch.float64, device="cpu")
        low = torch.arange(POSITIONS, dtype=torch.float64, device="cpu")
        time = sinusoid_frequencies(self.config.freq_dim)
        frame = rope_frequencies(self.axis_widths[0])
        del self.time_frequencies, self.frame_frequencies
        self.last_timestep = timesteps
        self.register_buffer("time_fraction", time.float())
        for name, angles in (
            ("time", whole[:, None] * time),
            ("low", low[:, None] * frame),
            ("high", low[:, None] * POSITIONS * frame),
        ):
            self.register_buffer(f"{name}_cos", angles.cos().float())
            self.register_buffer(f"{name}_sin", angles.sin().float())

    def time_angles(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        whole = timestep.floor().clamp(0, self.last_timestep)
        fraction = (timestep - whole).unsqueeze(-1) * self.time_fraction
        index = whole.to(torch.int32)
        entry = F.embedding(index, self.time_cos), F.embedding(index, self.time_sin)
        return _turned(*entry, fraction.cos(), fraction.sin())

    def frame_angles(self, position: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(self.frames, dtype=torch.int32, device=position.device)
        frame = position.to(torch.int32).unsqueeze(1) + steps
        # Exact in float32 below 2^24 frames, and the division is by a power of two.
        high = (frame.float() / POSITIONS).floor().to(torch.int32)
        low = frame - high * POSITIONS
        high = high.clamp(max=POSITIONS - 1)
        return _turned(
            F.embedding(high, self.high_cos),
            F.embedding(high, self.high_sin),
            F.embedding(low, self.low_cos),
            F.embedding(low, self.low_sin),
        )

    def ring_places(self, position: Tensor) -> Tensor:
        """Return each row's first token in the ring, int32 ``[B]``; the others follow it."""
        slots = ring_slots(position.to(torch.int32), 1, self.window, self.sink)
        return slots.squeeze(1).to(torch.int32) * (self.rows * self.columns)

    def forward(self, latent: Tensor, timestep: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """Return what :class:`DitIn` does; places and valid tokens are int32 ``[B]``."""
        *embedded, valid = super().forward(latent, timestep, position)
        return *embedded, valid.to(torch.int32)


def _turned(cos: Tensor, sin: Tensor, by_cos: Tensor, by_sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the sum of two angles."""
    return cos * by_cos - sin * by_sin, sin * by_cos + cos * by_sin


class OnnxDitBlock(DitBlock):
    """A block over a K/V cache ``[B, H, W*T, D]`` that the plan updates in place.

    The cache goes through ONNX's ``TensorScatter``, which TensorRT imports as its cache update,
    and through its own attention layer, which skips the keys past a length that lies on the
    device. Outside an export, torch computes the same. Where the library is too old (``ring``),
    attention is masked instead of shortened, and the whole cache is written to a bank.
    """

    def __init__(self, *sizes, ring: RingMode = "length") -> None:
        """Take :class:`DitBlock`'s sizes and what the library can do with the ring."""
        super().__init__(*sizes)
        self.ring: RingMode = ring

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """K and V caches ``[B, H, W*T, D]``; with an adaptive sink also its overwrite queue."""
        states = super().states(device)
        config = self.config
        shape = (self.batch, config.num_heads, self.window * self.tokens, config.head_dim)
        cache = {name: states[name].new_zeros(shape) for name in ("k", "v")}
        return states | cache

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
        q, k, v = (part.unflatten(-1, self.heads) for part in qkv.chunk(3, dim=-1))
        attn, eps = self.self_attn, self.config.eps
        # The attention layer does not scale; in the rotation, scaling costs no extra rounding.
        scale = self.config.head_dim**-0.5
        q = norm_rope(q, attn.norm_q.weight, cos * scale, sin * scale, eps)
        k = norm_rope(k, attn.norm_k.weight, cos, sin, eps)
        if self.threshold >= 0:
            rows = self.refreshed_rows(k, v, position, states)
        for name, new in (("k", k), ("v", v)):
            states[name] = _scatter(states[name], new.transpose(1, 2), rows, self.ring)
        out = _ring_attention(q.transpose(1, 2), states["k"], states["v"], valid, self.ring)
        return out.transpose(1, 2).flatten(2)

    def attend_text(self, q: Tensor, cross_k: Tensor, cross_v: Tensor) -> Tensor:
        """Attend with q ``[1, B*N, H, D]`` to k and v ``[1, H, text_len, D]``."""
        out = F.scaled_dot_product_attention(q.transpose(1, 2), cross_k, cross_v)
        return out.transpose(1, 2).flatten(2)

    def ring_frames(self, ring: Tensor) -> Tensor:
        shape = (self.batch, self.config.num_heads, self.window, self.tokens, -1)
        return ring.view(shape).permute(0, 2, 3, 1, 4)

    def slot_rows(self, slot: Tensor) -> Tensor:
        return slot.squeeze(1).to(torch.int32) * self.tokens


class OnnxCrossKV(CrossKV):
    """Cross-attention keys and values in the layout of TensorRT's attention."""

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return k and v, ``[1, H, text_len, D]``."""
        k, v = super().forward(context)
        return k.transpose(1, 2), v.transpose(1, 2)


def _scatter(cache: Tensor, new: Tensor, start: Tensor, ring: RingMode) -> Tensor:
    """Return the cache with ``new`` at ``start`` (int32 ``[B]``) of its tokens."""
    if ring == "copy" or not torch.compiler.is_exporting():
        tokens = start.view(-1, 1) + torch.arange(new.shape[2], device=new.device)
        return cache.scatter(2, tokens.long()[:, None, :, None].expand_as(new), new)
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, new, start.long()),
        {"mode": "linear", "axis": -2},
        dtype=cache.dtype,
        shape=cache.shape,
        version=24,
    )


def _ring_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, ring: RingMode) -> Tensor:
    """Return attention with q (scaled already) to the first ``valid`` (int32 ``[B]``) keys."""
    if ring != "length" or not torch.compiler.is_exporting():
        mask = torch.arange(k.shape[2], device=k.device) < valid.view(-1, 1, 1, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return torch.onnx.ops.symbolic(
        "trt::TRT_Attention",
        (q, k, v, None, None, valid),
        {},
        dtype=q.dtype,
        shape=q.shape,
        version=1,
    )


class PromptRange(PackageModule):
    """Text embedding and the cross-attention's K and V of a range of layers, in one plan."""

    def __init__(self, config, first: int, last: int) -> None:
        super().__init__()
        self.text = TextEmbedding(config)
        self.cross = nn.ModuleDict({str(i): OnnxCrossKV(config) for i in range(first, last)})

    def forward(self, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """Return k and v ``[1, H, text_len, D]``, layer by layer."""
        context = self.text(prompt_embeds)
        return tuple(tensor for layer in self.cross.values() for tensor in layer(context))


class DitRange(PackageModule):
    """A range of blocks; the first holds row shift and embeddings too, the last the head.

    A plan's weights are part of it, so everything that runs one after another is one plan.
    """

    weight_prefixes = {"embeddings": "in", "head": "out"}
    """Sub-modules whose weights have another name in the whole DiT."""

    def __init__(
        self,
        blocks: dict[int, OnnxDitBlock],
        embeddings: OnnxDitIn | None,
        head: DitOut | None,
        rows: ShiftRows | None,
    ) -> None:
        """Join modules.

        Args:
            embeddings: with the first block; head: with the last one, else None.
            rows: moves the stream batch on before the embeddings, in the first range.
        """
        super().__init__()
        self.rows, self.embeddings, self.head = rows, embeddings, head
        self.refreshes = any(block.threshold >= 0 for block in blocks.values())
        self.block = nn.ModuleDict({str(layer): block for layer, block in blocks.items()})

    def _blocks(self) -> Iterator[tuple[str, OnnxDitBlock]]:
        for layer, block in self.block.items():
            assert isinstance(block, OnnxDitBlock)
            yield layer, block

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        """The blocks' states under ``ring.bhnd.<layer>.``, the row shift's under ``rows.``."""
        shift = {} if self.rows is None else self.rows.states(device)
        states = {f"rows.{name}": state for name, state in shift.items()}
        for layer, block in self._blocks():
            for name, state in block.states(device).items():
                states[f"ring.bhnd.{layer}.{name}"] = state
        return states

    def roles(self) -> dict[str, Any]:
        shift = {} if self.rows is None else self.rows.roles()
        roles = {f"rows.{name}": role for name, role in shift.items()}
        for layer, block in self._blocks():
            roles |= {f"ring.bhnd.{layer}.{name}": role for name, role in block.roles().items()}
        return roles

    def forward(self, *inputs: Tensor, states: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Run the range.

        Args:
            inputs: of :class:`ShiftRows` or of :class:`DitIn` in the first range; in later ones
                x, e0, cos, sin, valid, places (position with an adaptive sink), then e, latent
                and timestep with the head. After that the K and V of the prompt, layer by layer,
                and with the head the next sigma and the noise.
        Returns:
            With the head, the latent at the next noise level; else x, and out of the first range
            also e, e0, cos, sin, valid, places and, where rows were shifted, their latents.
        """
        embeddings, head = self.embeddings, self.head
        pending = list(inputs)

        def take(count: int) -> list[Tensor]:
            taken = pending[:count]
            del pending[:count]
            return taken

        shifted: tuple[Tensor, ...] = ()
        e: Any = None
        latent: Any = None
        timestep: Any = None
        places: Any
        position: Any
        if embeddings is None:
            x, e0, cos, sin, valid, where = take(6)
            places, position = (None, where) if self.refreshes else (where, None)
            if head is not None:
                e, latent, timestep = take(3)
        else:
            if self.rows is None:
                latent, timestep, position = take(3)
            else:
                rows = {name: states[f"rows.{name}"] for name in self.rows.states()}
                latent = self.rows(*take(4), states=rows)
                timestep, position = rows["timestep"], rows["position"]
                shifted = (latent,)
            x, e, e0, cos, sin, places, valid = embeddings(latent, timestep, position)
        handed_on = (e, e0, cos, sin, valid, places, *shifted) if embeddings is not None else ()
        for layer, block in self._blocks():
            own = {name: states[f"ring.bhnd.{layer}.{name}"] for name in block.states()}
            text = take(2)
            x = block(x, e0, cos, sin, places, valid, position, *text, states=own)
            for name, state in own.items():
                states[f"ring.bhnd.{layer}.{name}"] = state
        if head is None:
            return x, *handed_on
        return (head(x, e, latent, timestep, *pending),)
