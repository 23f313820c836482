"""Stages as TensorRT plans: a stage or a range of the DiT is one package, its weights inside.

Where a stage is TensorRT's, what Inductor has as small packages around it is part of its plan. One
plan serves *filling* and *steady*, since the valid length is on the device, and the clean pass too:
its weights are stored once.
"""

from collections.abc import Sequence
from functools import partial

from sdrt.engine.dit.head import DitOut
from sdrt.engine.dit.rows import ShiftRows
from sdrt.engine.latents import latent_decoder, latent_encoder
from sdrt.engine.motion import Intake
from sdrt.export.errors import BackendError
from sdrt.export.plan.coders import declare_input, input_coder, motion_noise
from sdrt.export.plan.dit import SHARED, DitPass
from sdrt.export.plan.draft import Draft
from sdrt.export.tensorrt.coders import (
    DecodeStage,
    EncodeStage,
    OnnxFramesToPixels,
    OnnxMotionNoise,
    OnnxPixelsToFrames,
)
from sdrt.export.tensorrt.dit import DitRange, OnnxDitBlock, OnnxDitIn, PromptRange
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.specs import Phase, Ref, Role, buffer

RANGE_BLOCKS = 10
"""Blocks of one plan: builds stay short and small, and a changed weight rebuilds one range."""

HANDED_ON: dict[str, Role] = {
    **{name: SHARED[name] for name in ("e0", "cos", "sin", "valid")},
    "ring_places": "ring_tokens",
}
"""What the first range hands to the others, in their order."""


def default_ranges(layers: int) -> tuple[tuple[int, int], ...]:
    """Return DiT ranges of ``RANGE_BLOCKS`` blocks or, evenly split, a little fewer."""
    count = -(-layers // RANGE_BLOCKS)
    ends = [layers * index // count for index in range(count + 1)]
    return tuple(zip(ends[:-1], ends[1:], strict=True))


class PlanCoderStages:
    """Lays out an autoencoder whose stages are a plan each."""

    def __init__(self, draft: Draft, backend: Backend) -> None:
        self.draft, self.builder, self.preset = draft, draft.builder, draft.preset
        self.backend: Backend = backend

    def encode(self, phase: Phase, latent_frames: int, results: Sequence[str]) -> str:
        """Add an encode stage, as :class:`CoderLayout` has it."""
        draft, coder = self.draft, input_coder(self.draft)
        name = f"{coder.encoder_stage}.{phase}"
        declare_input(draft, phase, latent_frames)
        self.builder.package(
            name,
            lambda: EncodeStage(
                coder.name,
                Intake(
                    OnnxFramesToPixels(coder.signed, draft.dtype),
                    motion_noise(draft, OnnxMotionNoise, phase),
                ),
                latent_encoder(self.preset, phase == "first", draft.how),
            ),
            self.backend,
            bakes=True,
        )
        noisy, *timestep = results
        made: dict[str, Role] = {noisy: "latent", **dict.fromkeys(timestep, "timestep")}
        call = self.builder.call(name, [f"frames.{phase}", f"noise.{phase}"], made)
        return self.builder.stage(name, "encode", phase, [call], noisy)

    def decode(self, phase: Phase, latent_frames: int, latent: str) -> str:
        """Add a decode stage, as :class:`CoderLayout` has it."""
        preset, coder, how = self.preset, self.preset.output_coder, self.draft.how
        name = f"{coder.decoder_stage}.{phase}"
        self.builder.package(
            name,
            lambda: DecodeStage(
                coder.name,
                latent_decoder(preset, latent_frames, phase == "first", how),
                OnnxPixelsToFrames(coder.signed),
            ),
            self.backend,
            bakes=True,
        )
        frames: dict[str, Role] = {f"frames_out.{phase}": "picture"}
        call = self.builder.call(name, [latent], frames)
        return self.builder.stage(name, "decode", phase, [call], f"frames_out.{phase}")


class PlanDitStages:
    """Lays out a DiT whose block ranges are a plan each."""

    def __init__(self, draft: Draft, backend: Backend) -> None:
        """Prepare the stages.

        Raises:
            BackendError: TensorRT cannot hold the preset's ring.
        """
        self.draft, self.builder = draft, draft.builder
        self.preset = preset = draft.preset
        self.backend: Backend = backend
        frames, window = preset.stream.chunk_latent_frames, preset.stream.window_frames
        sink = preset.effective_sink_frames
        if window % frames or sink % frames:
            raise BackendError(
                f"stream.window_frames = {window}, sink frames = {sink}: TensorRT writes a chunk "
                f"to the ring as a whole, so both must be multiples of "
                f"chunk_latent_frames = {frames}; or use --stage-backend dit=inductor"
            )

    def prompt(self) -> None:
        """Add the stage of what depends on the prompt only, a plan a range."""
        dit, calls = self.preset.dit, []
        for first, last in self.draft.ranges:
            package = f"prompt_range.{first}-{last}"
            make = partial(PromptRange, dit, first, last)
            self.builder.package(package, make, self.backend, bakes=True)
            outputs = self._text(first, last)
            calls.append(self.builder.call(package, ["prompt_embeds"], outputs, kind="prompt"))
        self.builder.stage("prompt", "prompt", "any", calls)

    def run(self, dit_pass: DitPass) -> list[str]:
        """Add the stages of a pass, as :class:`DitLayout` has it."""
        last_range = len(self.draft.ranges) - 1
        return [
            self._range(dit_pass, index, index == last_range) for index in range(last_range + 1)
        ]

    def _range(self, dit_pass: DitPass, index: int, is_last: bool) -> str:
        """Add the stage of one range; the clean pass runs the same plan as any other."""
        first, last = self.draft.ranges[index]
        package = f"dit_range.{dit_pass.shape}.{first}-{last}"
        make = partial(self._module, dit_pass, first, last)
        self.builder.package(package, make, self.backend, bakes=True)
        # The first chunk of a stream batch runs at batch 1 on row 0 of the rings.
        rows = 1 if dit_pass.phase == "first" else None
        inputs = self._inputs(dit_pass, index, is_last)
        outputs = self._outputs(dit_pass, index, is_last)
        call = self.builder.call(package, inputs, outputs, state_rows=rows)
        name, makes = dit_pass.stage(first, last), dit_pass.result if is_last else None
        return self.builder.stage(name, dit_pass.group, dit_pass.phase, [call], makes)

    def _inputs(self, dit_pass: DitPass, index: int, is_last: bool) -> list[str | Ref]:
        """Return what a range takes, in the order of :meth:`DitRange.forward`."""
        first, last = self.draft.ranges[index]
        own = (dit_pass.latent, dit_pass.row[0], dit_pass.position)
        inputs: list[str | Ref] = list(dit_pass.shift or own)
        if index:
            *shared, places = (f"{name}.{dit_pass.shape}" for name in HANDED_ON)
            where = dit_pass.position if self._refreshes(dit_pass) else places
            inputs = [f"x.{dit_pass.shape}.{index % 2}", *shared, where]
            inputs += [f"e.{dit_pass.shape}", *own[:2]] if is_last else []
        text = self._text(first, last)
        return [*inputs, *text, *(dit_pass.row[1:] if is_last else [])]

    def _outputs(self, dit_pass: DitPass, index: int, is_last: bool) -> dict[str, Role]:
        """Return what a range makes: even ranges read the one residual stream, odd the other."""
        if is_last:  # what the head makes of a clean pass goes nowhere
            return {dit_pass.result or "latent.unused": "latent"}
        shape = dit_pass.shape
        made: dict[str, Role] = {f"x.{shape}.{(index + 1) % 2}": "activation"}
        if index == 0:
            made[f"e.{shape}"] = "activation"
            made |= {f"{name}.{shape}": role for name, role in HANDED_ON.items()}
            made |= {dit_pass.latent: "latent"} if dit_pass.shift else {}
        return made

    def _refreshes(self, dit_pass: DitPass) -> bool:
        """Return whether the adaptive sink is at work."""
        return self.preset.stream.sink_refresh_threshold >= 0 and dit_pass.phase != "first"

    def _module(self, dit_pass: DitPass, first: int, last: int) -> DitRange:
        preset, stream, schedule = self.preset, self.preset.stream, self.preset.schedule
        dit, window, sink = preset.dit, stream.window_frames, preset.effective_sink_frames
        latent = dit_pass.shift[0] if dit_pass.shift else dit_pass.latent
        batch, frames = self.builder.plan.buffers[latent].shape[:2]
        timesteps = schedule.num_train_timesteps
        threshold = stream.sink_refresh_threshold if self._refreshes(dit_pass) else -1.0
        sizes = (
            dit,
            batch,
            preset.tokens_per_frame,
            window,
            stream.sink_frames,
            "filling",
            threshold,
        )
        blocks = {
            layer: OnnxDitBlock(*sizes, ring=self.draft.recipe.tensorrt.ring)
            for layer in range(first, last)
        }
        embeddings = head = None
        size = preset.latent_size
        if first == 0:
            embeddings = OnnxDitIn(dit, *size, frames, window, sink, timesteps=timesteps)
        if last == dit.num_layers:
            head = DitOut(dit, *size, self.draft.solver)
        rows = ShiftRows(self.draft.steps) if dit_pass.shift and first == 0 else None
        return DitRange(blocks, embeddings, head, rows)

    def ring_rows(self, row: int) -> list[Ref]:
        """Return one row's K and V rings, layer by layer."""
        layers = range(self.preset.dit.num_layers)
        rings = [f"ring.bhnd.{layer}.{part}" for layer in layers for part in "kv"]
        return [buffer(name, (row, row + 1)) for name in rings]

    def _text(self, first: int, last: int) -> list[str]:
        """Names of the prompt's K and V; their layout differs from Inductor's."""
        layers = range(first, last)
        return [f"cross_{part}.bhnd.{layer}" for layer in layers for part in "kv"]
