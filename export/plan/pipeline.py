"""The plan of a preset: which modules its stages call, in which order, on which buffers."""

from collections.abc import Mapping, Sequence

import torch

from sdrt.engine.dit.block import DitBlock, DitKeys
from sdrt.engine.dit.embeddings import DitIn
from sdrt.engine.dit.head import DitOut
from sdrt.engine.dit.rows import ShiftRows
from sdrt.engine.dit.text import CrossKV, TextEmbedding
from sdrt.engine.preset.preset import Preset
from sdrt.engine.solvers.registry import make_solver
from sdrt.export.plan.builder import Plan, PlanBuilder
from sdrt.export.plan.coders import CoderStages
from sdrt.runtime.directory.manifest import Call, Phase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SHIFTED = ("latent.steady", "noisy.steady", "timestep", "frame")
"""What the stream batch's row shift reads."""


class Pipeline(CoderStages):
    """Builds the plan of one preset."""

    def __init__(
        self,
        preset: Preset,
        ranges: Sequence[tuple[int, int]],
        device: str,
        choices: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the plan.

        Args:
            ranges: consecutive DiT block ranges ``(first, last)`` that cover all layers.
            device: ``cuda`` or ``cpu``: decides memory formats.
            choices: implementations, as :mod:`sdrt.export.tune.measure` finds them; without, what
                runs everywhere.
        """
        self.preset, self.ranges, self.device = preset, ranges, device
        self.how = choices or {}
        self.dtype = DTYPES[preset.precision]
        self.builder = PlanBuilder(self.dtype, channels_last_3d=device == "cuda")
        self.stream_batch = preset.flow == "stream-batch"
        self.steps = len(preset.schedule.steps)
        self.latent = preset.latent_size

    def plan(self) -> Plan:
        """Return packages, buffers and stages."""
        for name, table in make_solver(self.preset.schedule).tables().items():
            self.builder.table(f"schedule.{name}", table)
        self._prompt()
        if self.stream_batch:
            self._stream_batch()
        else:
            self._rollout()
        return self.builder.plan

    def _prompt(self) -> None:
        builder, dit = self.builder, self.preset.dit
        builder.buffer("prompt_embeds", (1, dit.text_len, dit.text_dim), torch.float32, "prompt")
        builder.package("text", lambda: TextEmbedding(dit))
        builder.package("cross_kv", lambda: CrossKV(dit))
        calls = [builder.call("text", ["prompt_embeds"], ["context"], weights="text")]
        for layer in range(dit.num_layers):
            outputs = [f"cross_k.{layer}", f"cross_v.{layer}"]
            calls.append(
                builder.call(
                    "cross_kv", ["context"], outputs, weights=f"cross.{layer}", kind="prompt"
                )
            )
        builder.stage("prompt", "prompt", "any", calls)

    def _stream_batch(self) -> None:
        builder, preset, steps = self.builder, self.preset, self.steps
        first, steady = preset.first_chunk_latent_frames, preset.stream.chunk_latent_frames
        self._encode("first", first)
        self._encode("steady", steady)

        # The encoder's results and the decoder's input have buffers of their own, so that a chunk
        # can be encoded and another decoded while the DiT works on a third.
        builder.buffer("noisy.steady", (1, steady, *preset.latent_shape), torch.float32)
        builder.buffer("timestep", (1,), torch.float32)
        builder.buffer("finished.steady", (1, steady, *preset.latent_shape), torch.float32)
        builder.buffer("frame", (1,), torch.int64, "state")
        builder.buffer("renoise.steady", (steps, steady, *preset.latent_shape), torch.float32)
        builder.buffer(
            "latent.steady", (steps, steady, *preset.latent_shape), torch.float32, "state"
        )
        rows = ("rows.latent", "rows.timestep", "rows.position")
        renoise = ("w:schedule.next_sigmas", "renoise.steady")
        for phase in ("filling", "steady"):
            self._dit(phase, True, rows, renoise, "latent.steady")
        self._decode("steady", steady, "finished.steady")

        builder.buffer("timestep.first", (1, 1), torch.float32)
        builder.buffer("next_sigma.first", (1,), torch.float32)
        builder.buffer("position.first", (1,), torch.int64)
        builder.buffer("renoise.first", (1, first, *preset.latent_shape), torch.float32)
        inputs = ("noisy.first", "timestep.first", "position.first")
        self._dit("first", False, inputs, ("next_sigma.first", "renoise.first"), "latent.first")
        self._decode("first", first, "latent.first")

    def _rollout(self) -> None:
        builder, preset = self.builder, self.preset
        frames = preset.stream.chunk_latent_frames
        shape = (1, frames, *preset.latent_shape)
        for name in ("noisy", "renoise", "finished"):
            builder.buffer(name, shape, torch.float32)
        builder.buffer("timestep", (1, 1), torch.float32)
        builder.buffer("next_sigma", (1,), torch.float32)
        builder.buffer("frame", (1,), torch.int64, "state")
        inputs = ("noisy", "timestep", "frame")
        for phase in ("filling", "steady"):
            self._dit(phase, False, inputs, ("next_sigma", "renoise"), "latent")
            if preset.schedule.clean_pass:
                self._dit(phase, False, inputs, None, "latent")
        for phase in ("first", "steady"):
            self._decode(phase, frames, "finished")

    def _shift(self) -> Call:
        self.builder.package("shift", lambda: ShiftRows(self.steps))
        return self.builder.call("shift", SHIFTED, ["rows.latent"], states="rows")

    def _keys(self, x: str, shared: Sequence[str], layer: int) -> Call:
        """Return the call of a clean pass's last block, which only writes K and V."""
        preset, stream = self.preset, self.preset.stream
        self.builder.package(
            "dit_keys",
            lambda: DitKeys(
                preset.dit,
                1,
                preset.tokens_per_frame,
                stream.window_frames,
                stream.sink_frames,
                stream.sink_refresh_threshold,
            ),
        )
        inputs = [x, *(name for name in shared if not name.startswith("valid."))]
        return self.builder.call(
            "dit_keys", inputs, states=f"ring.{layer}", weights=f"block.{layer}"
        )

    def _dit(
        self,
        phase: Phase,
        shifts: bool,
        inputs: tuple[str, str, str],
        renoise: tuple[str, str] | None,
        result: str,
    ) -> None:
        """Add the DiT ranges of one phase: embeddings, blocks, head and re-noising.

        Args:
            shifts: the stream batch moves on by one row before the first range.
            inputs: latent, timestep and position buffers.
            renoise: next sigma and noise buffers; None for the clean pass, which only writes K/V.
            result: takes the latent at the next noise level.
        """
        builder, preset, stream = self.builder, self.preset, self.preset.stream
        before = [self._shift()] if shifts else []
        dit, sink, window = preset.dit, preset.effective_sink_frames, stream.window_frames
        batch, frames = builder.plan.buffers[inputs[0]].shape[:2]
        shape = "first" if phase == "first" else "chunk"
        builder.package(f"dit_in.{shape}", lambda: DitIn(dit, *self.latent, frames, window, sink))
        builder.package(
            f"dit_out.{shape}",
            lambda: DitOut(dit, *self.latent, make_solver(preset.schedule)),
        )
        builder.package(
            f"dit_block.{phase}",
            lambda: DitBlock(
                dit,
                batch,
                preset.tokens_per_frame,
                window,
                stream.sink_frames,
                phase,
                -1.0 if phase == "first" else stream.sink_refresh_threshold,
                self.how,
            ),
        )
        names = ("e0", "cos", "sin", "ring_rows", "valid")
        e, embedded = f"e.{shape}", [f"{name}.{shape}" for name in names]
        shared = [*embedded, inputs[2]]
        residual = [f"x.{shape}.0", f"x.{shape}.1"]  # even layers read the one, odd the other
        head = builder.call(f"dit_in.{shape}", inputs, [residual[0], e, *embedded], weights="in")
        group = "diffuse" if renoise else "finalize"
        for first, last in self.ranges:
            calls = [*before, head] if first == 0 else []
            for layer in range(first, last):
                if layer == dit.num_layers - 1 and not renoise:
                    calls.append(self._keys(residual[layer % 2], shared, layer))
                    break
                calls.append(
                    builder.call(
                        f"dit_block.{phase}",
                        [residual[layer % 2], *shared, f"cross_k.{layer}", f"cross_v.{layer}"],
                        [residual[(layer + 1) % 2]],
                        states=f"ring.{layer}",
                        # The first chunk runs at batch 1 on row 0 of the rings.
                        state_rows=window if phase == "first" else None,
                        weights=f"block.{layer}",
                    )
                )
            if last == dit.num_layers and renoise:
                calls.append(
                    builder.call(
                        f"dit_out.{shape}",
                        [residual[last % 2], e, *inputs[:2], *renoise],
                        [result],
                        weights="out",
                    )
                )
            builder.stage(f"dit[{first}:{last}]", group, phase, calls)
