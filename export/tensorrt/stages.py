"""The plan of a preset whose stages, all or some, are TensorRT's: one package a stage or range."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from sdrt.engine.dit.head import DitOut
from sdrt.engine.dit.rows import ShiftRows
from sdrt.engine.latents import latent_decoder, latent_encoder
from sdrt.engine.motion import Intake
from sdrt.engine.preset.preset import Preset
from sdrt.engine.solvers.registry import make_solver
from sdrt.export.plan.coders import encoder_results
from sdrt.export.plan.pipeline import SHIFTED, Pipeline
from sdrt.export.tensorrt.choice import BackendError, RingMode
from sdrt.export.tensorrt.coders import (
    DecodeStage,
    EncodeStage,
    OnnxFramesToPixels,
    OnnxMotionNoise,
    OnnxPixelsToFrames,
)
from sdrt.export.tensorrt.dit import DitRange, OnnxDitBlock, OnnxDitIn, PromptRange
from sdrt.runtime.directory.manifest import Backend, Phase

RANGE_BLOCKS = 10
"""Blocks of one plan: builds stay short and small, and a changed weight rebuilds one range."""


def default_ranges(layers: int) -> tuple[tuple[int, int], ...]:
    """Return DiT ranges of ``RANGE_BLOCKS`` blocks or, evenly split, a little fewer."""
    count = -(-layers // RANGE_BLOCKS)
    ends = [layers * index // count for index in range(count + 1)]
    return tuple(zip(ends[:-1], ends[1:], strict=True))


def make_pipeline(
    preset: Preset,
    ranges: Sequence[tuple[int, int]],
    device: str,
    backends: Mapping[str, Backend],
    ring: RingMode = "length",
    choices: Mapping[str, str] | None = None,
) -> Pipeline:
    """Return the pipeline of a preset for the backends of its stages.

    Args:
        ring: what the TensorRT that is used can do with the K/V ring.
        choices: implementations of packages' ops, as :class:`Pipeline` takes them.
    Raises:
        BackendError: TensorRT cannot hold the preset's ring.
    """
    if all(backend == "inductor" for backend in backends.values()):
        return Pipeline(preset, ranges, device, choices)
    return TensorRtPipeline(preset, ranges, device, backends, ring, choices)


class TensorRtPipeline(Pipeline):
    """Builds the plan of a preset some of whose stages are TensorRT plans.

    A stage keeps its name, group and phases; where it is TensorRT's, what Inductor has as small
    packages around it is part of its plan. One plan serves *filling* and *steady*, since the
    valid length is on the device, and the clean pass too: its weights are stored once.
    """

    def __init__(
        self,
        preset: Preset,
        ranges: Sequence[tuple[int, int]],
        device: str,
        backends: Mapping[str, Backend],
        ring: RingMode,
        choices: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(preset, ranges, device, choices)
        self.backends = backends
        self.ring: RingMode = ring
        frames, window = preset.stream.chunk_latent_frames, preset.stream.window_frames
        sink = preset.effective_sink_frames
        if backends["dit"] != "inductor" and (window % frames or sink % frames):
            raise BackendError(
                f"stream.window_frames = {window}, sink frames = {sink}: TensorRT writes a chunk "
                f"to the ring as a whole, so both must be multiples of "
                f"chunk_latent_frames = {frames}; or use --stage-backend dit=inductor"
            )

    def _prompt(self) -> None:
        backend = self.backends["dit"]
        if backend == "inductor":
            return super()._prompt()
        builder, dit = self.builder, self.preset.dit
        shape = (1, dit.text_len, dit.text_dim)
        builder.buffer("prompt_embeds", shape, torch.float32, "prompt")
        calls = []
        for first, last in self.ranges:
            package = f"prompt_range.{first}-{last}"
            builder.package(package, partial(PromptRange, dit, first, last), backend)
            outputs = self._text(first, last)
            calls.append(builder.call(package, ["prompt_embeds"], outputs, kind="prompt"))
        builder.stage("prompt", "prompt", "any", calls)

    def _encode(self, phase: Phase, latent_frames: int) -> None:
        coder = self.preset.input_coder
        assert coder is not None
        name = coder.encoder_stage
        backend = self.backends[name]
        if backend == "inductor":
            return super()._encode(phase, latent_frames)
        builder, preset, suffix = self.builder, self.preset, f".{phase}"
        first, size = phase == "first", (preset.stream.height, preset.stream.width)
        frames, scale = preset.input_frames(first), preset.schedule.noise_scale
        assert scale is not None
        builder.buffer(f"frames{suffix}", (frames, *size, 3), torch.uint8)
        builder.buffer(f"noise{suffix}", (latent_frames, *preset.latent_shape), torch.float32)
        timesteps = preset.schedule.num_train_timesteps
        builder.package(
            f"{name}{suffix}",
            lambda: EncodeStage(
                coder.name,
                Intake(
                    OnnxFramesToPixels(coder.signed, self.dtype),
                    OnnxMotionNoise(scale, timesteps, *size, first=first),
                ),
                latent_encoder(preset, first, self.how),
            ),
            backend,
        )
        inputs = [f"frames{suffix}", f"noise{suffix}"]
        call = builder.call(f"{name}{suffix}", inputs, encoder_results(phase))
        builder.stage(name, "encode", phase, [call])

    def _decode(self, phase: Phase, latent_frames: int, latent: str) -> None:
        coder = self.preset.output_coder
        name = coder.decoder_stage
        backend = self.backends[name]
        if backend == "inductor":
            return super()._decode(phase, latent_frames, latent)
        builder, preset = self.builder, self.preset
        package, first = f"{name}.{phase}", phase == "first"
        builder.package(
            package,
            lambda: DecodeStage(
                coder.name,
                latent_decoder(preset, latent_frames, first, self.how),
                OnnxPixelsToFrames(coder.signed),
            ),
            backend,
        )
        call = builder.call(package, [latent], [f"frames_out.{phase}"])
        builder.stage(name, "decode", phase, [call])

    def _dit(
        self,
        phase: Phase,
        shifts: bool,
        inputs: tuple[str, str, str],
        renoise: tuple[str, str] | None,
        result: str,
    ) -> None:
        backend = self.backends["dit"]
        if backend == "inductor":
            return super()._dit(phase, shifts, inputs, renoise, result)
        builder, threshold = self.builder, self.preset.stream.sink_refresh_threshold
        batch, frames = builder.plan.buffers["latent.steady" if shifts else inputs[0]].shape[:2]
        shape = "first" if phase == "first" else "chunk"
        group = "diffuse" if renoise else "finalize"
        if renoise is None:  # the same plans; what the head makes of it goes nowhere
            renoise, result = ("next_sigma", "renoise"), "latent.unused"
        refreshes = threshold >= 0 and phase != "first"
        names = ("e0", "cos", "sin", "valid", "ring_places")
        shared, e = [f"{name}.{shape}" for name in names], f"e.{shape}"
        x = [f"x.{shape}.0", f"x.{shape}.1"]  # even ranges read the one, odd the other
        for index, (first, last) in enumerate(self.ranges):
            package = f"dit_range.{shape}.{first}-{last}"
            is_last = last == self.preset.dit.num_layers
            builder.package(
                package,
                partial(self._range, first, last, batch, frames, shifts, refreshes),
                backend,
            )
            if first == 0:
                arguments = list(SHIFTED if shifts else inputs)
                handed_on = [e, *shared, *(["rows.latent"] if shifts else [])]
            else:
                where = inputs[2] if refreshes else shared[-1]
                arguments = [x[index % 2], *shared[:-1], where]
                arguments += [e, *inputs[:2]] if is_last else []
                handed_on = []
            arguments += self._text(first, last) + (list(renoise) if is_last else [])
            outputs = [result] if is_last else [x[(index + 1) % 2], *handed_on]
            # The first chunk runs at batch 1 on row 0 of the rings.
            rows = 1 if phase == "first" and self.stream_batch else None
            call = builder.call(package, arguments, outputs, state_rows=rows)
            builder.stage(f"dit[{first}:{last}]", group, phase, [call])

    def _range(
        self, first: int, last: int, batch: int, frames: int, shifts: bool, refreshes: bool
    ) -> DitRange:
        preset, stream, schedule = self.preset, self.preset.stream, self.preset.schedule
        dit, window, sink = preset.dit, stream.window_frames, preset.effective_sink_frames
        timesteps = schedule.num_train_timesteps
        threshold = stream.sink_refresh_threshold if refreshes else -1.0
        sizes = (dit, batch, preset.tokens_per_frame)
        blocks = {
            layer: OnnxDitBlock(
                *sizes, window, stream.sink_frames, "filling", threshold, ring=self.ring
            )
            for layer in range(first, last)
        }
        embeddings = head = None
        if first == 0:
            embeddings = OnnxDitIn(dit, *self.latent, frames, window, sink, timesteps=timesteps)
        if last == dit.num_layers:
            head = DitOut(dit, *self.latent, make_solver(schedule))
        rows = ShiftRows(self.steps) if shifts and first == 0 else None
        return DitRange(blocks, embeddings, head, rows)

    def _text(self, first: int, last: int) -> list[str]:
        """Names of the prompt's K and V; their layout differs from Inductor's."""
        layers = range(first, last)
        return [f"cross_{part}.bhnd.{layer}" for layer in layers for part in "kv"]
