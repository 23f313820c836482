"""The DiT's stages as packages: embeddings, one block for all layers, head; and the prompt's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdrt.engine.dit.block import DitBlock, DitKeys
from sdrt.engine.dit.embeddings import DitIn
from sdrt.engine.dit.head import DitOut
from sdrt.engine.dit.rows import ShiftRows
from sdrt.engine.dit.text import CrossKV, TextEmbedding
from sdrt.export.plan.draft import Draft
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.specs import Call, Condition, Group, Phase, Ref, Role, buffer, replay

SHARED: dict[str, Role] = {
    "e0": "activation",
    "cos": "activation",
    "sin": "activation",
    "ring_rows": "ring_rows",
    "valid": "length",
}
"""What the embeddings hand to every block, but the residual stream."""


@dataclass(frozen=True)
class DitPass:
    """One pass over a chunk, or over all rows of a stream batch at once; buffers by name."""

    phase: Phase
    latent: str
    position: str
    row: Sequence[str | Ref]
    """What the solver takes beside flow and latent: the timestep first, which the embeddings take
    too, and the noise last, if it draws any."""
    result: str | None
    """Takes the latent at the next noise level; None: only the keys and values count (a clean
    pass)."""
    shift: tuple[str, str, str, str] | None = None
    """The stream batch's rows, the new chunk, its timestep and its frame: before the pass the
    rows move on by one and the new chunk comes in at row 0."""

    @property
    def group(self) -> Group:
        """What the pass is part of."""
        return "finalize" if self.result is None else "diffuse"

    @property
    def shape(self) -> str:
        """The passes that share packages: the first chunk's differ from all others."""
        return "first" if self.phase == "first" else "chunk"

    def stage(self, first: int, last: int) -> str:
        """Return the name of the stage of a block range."""
        clean = "" if self.result is not None else ".clean"
        return f"dit[{first}:{last}]{clean}.{self.phase}"


def prompt_condition(draft: Draft) -> Condition:
    """Declare the prompt: its embeddings, and the stage that makes of them what blocks read."""
    dit = draft.preset.dit
    shape = (1, dit.text_len, dit.text_dim)
    embeds = draft.builder.buffer("prompt_embeds", shape, torch.float32, "embeds", "prompt")
    return Condition(name="prompt", source="text", input=embeds, ops=(replay("prompt"),))


class DitStages:
    """Lays out the stages of a DiT whose blocks are calls of one package."""

    def __init__(self, draft: Draft, backend: Backend) -> None:
        self.draft, self.builder, self.preset = draft, draft.builder, draft.preset
        self.backend: Backend = backend

    def prompt(self) -> None:
        """Add the stage that runs once a prompt: text embedding, every layer's K and V."""
        builder, dit = self.builder, self.preset.dit
        builder.package("text", lambda: TextEmbedding(dit), self.backend)
        builder.package("cross_kv", lambda: CrossKV(dit), self.backend)
        calls = [builder.call("text", ["prompt_embeds"], ["context"], weights="text")]
        for layer in range(dit.num_layers):
            outputs, weights = _text(layer), f"cross.{layer}"
            calls.append(
                builder.call("cross_kv", ["context"], outputs, weights=weights, kind="prompt")
            )
        builder.stage("prompt", "prompt", "any", calls)

    def run(self, dit_pass: DitPass) -> list[str]:
        """Add the stages of a pass, a range each; return their names in order."""
        self._packages(dit_pass)
        names, x = [], f"x.{dit_pass.shape}"
        for first, last in self.draft.ranges:
            calls = self._begin(dit_pass, x) if first == 0 else []
            calls += [self._block(dit_pass, x, layer) for layer in range(first, last)]
            is_last = last == self.preset.dit.num_layers
            if is_last and dit_pass.result is not None:
                calls.append(self._end(dit_pass, x))
            name, makes = dit_pass.stage(first, last), dit_pass.result if is_last else None
            names.append(self.builder.stage(name, dit_pass.group, dit_pass.phase, calls, makes))
        return names

    def _packages(self, dit_pass: DitPass) -> None:
        """Declare the packages that a pass calls."""
        builder, preset, shape = self.builder, self.preset, dit_pass.shape
        dit, stream = preset.dit, preset.stream
        batch, frames = self._rows(dit_pass)
        size, how = preset.latent_size, self.draft.how
        window, first = stream.window_frames, dit_pass.phase == "first"
        ring = (preset.tokens_per_frame, window, stream.sink_frames)
        threshold = -1.0 if first else stream.sink_refresh_threshold
        if dit_pass.shift is not None:
            builder.package("shift", lambda: ShiftRows(self.draft.steps), self.backend)
        builder.package(
            f"dit_in.{shape}",
            lambda: DitIn(dit, *size, frames, window, preset.effective_sink_frames),
            self.backend,
        )
        builder.package(
            f"dit_block.{dit_pass.phase}",
            lambda: DitBlock(
                dit,
                batch,
                *ring,
                phase=dit_pass.phase,
                refresh_threshold=threshold,
                how=how,
            ),
            self.backend,
        )
        if dit_pass.result is None:
            builder.package("dit_keys", lambda: DitKeys(dit, batch, *ring, threshold), self.backend)
            return
        builder.package(
            f"dit_out.{shape}",
            lambda: DitOut(dit, *size, self.draft.solver),
            self.backend,
        )

    def _rows(self, dit_pass: DitPass) -> tuple[int, int]:
        """Return the rows of a pass and the latent frames of each."""
        latent = dit_pass.shift[0] if dit_pass.shift else dit_pass.latent
        rows, frames = self.builder.plan.buffers[latent].shape[:2]
        return rows, frames

    def _begin(self, dit_pass: DitPass, x: str) -> list[Call]:
        """Return the calls before the blocks: row shift and embeddings."""
        builder, shape, calls = self.builder, dit_pass.shape, []
        if dit_pass.shift is not None:
            moved: dict[str, Role] = {dit_pass.latent: "latent"}
            calls.append(builder.call("shift", dit_pass.shift, moved, states="rows"))
        inputs = (dit_pass.latent, dit_pass.row[0], dit_pass.position)
        embedded: dict[str, Role] = {f"{name}.{shape}": role for name, role in SHARED.items()}
        outputs: dict[str, Role] = {f"{x}.0": "activation", f"e.{shape}": "activation", **embedded}
        return [*calls, builder.call(f"dit_in.{shape}", inputs, outputs, weights="in")]

    def _block(self, dit_pass: DitPass, x: str, layer: int) -> Call:
        """Return the call of a block: even layers read the one residual stream, odd the other."""
        residual, shared = f"{x}.{layer % 2}", [f"{name}.{dit_pass.shape}" for name in SHARED]
        states, weights = f"ring.{layer}", f"block.{layer}"
        if dit_pass.result is None and layer == self.preset.dit.num_layers - 1:
            *known, _ = shared  # it attends to nothing, so the number of valid tokens is not asked
            inputs = [residual, *known, dit_pass.position]
            return self.builder.call("dit_keys", inputs, states=states, weights=weights)
        # The first chunk of a stream batch runs at batch 1 on row 0 of the rings.
        first = dit_pass.phase == "first"
        return self.builder.call(
            f"dit_block.{dit_pass.phase}",
            [residual, *shared, dit_pass.position, *_text(layer)],
            [f"{x}.{(layer + 1) % 2}"],
            state_rows=self.preset.stream.window_frames if first else None,
            states=states,
            weights=weights,
        )

    def _end(self, dit_pass: DitPass, x: str) -> Call:
        """Return the call after the blocks: head, and what the solver makes of its flow."""
        assert dit_pass.result is not None
        residual = f"{x}.{self.preset.dit.num_layers % 2}"
        inputs = [residual, f"e.{dit_pass.shape}", dit_pass.latent, *dit_pass.row]
        result: dict[str, Role] = {dit_pass.result: "latent"}
        return self.builder.call(f"dit_out.{dit_pass.shape}", inputs, result, weights="out")

    def ring_rows(self, row: int) -> list[Ref]:
        """Return one row's K and V rings, layer by layer."""
        window, layers = self.preset.stream.window_frames, range(self.preset.dit.num_layers)
        rows = (row * window, (row + 1) * window)
        return [buffer(f"ring.{layer}.{part}", rows) for layer in layers for part in "kv"]


def _text(layer: int) -> list[str]:
    return [f"cross_k.{layer}", f"cross_v.{layer}"]
