"""Calibrating FP8 and measuring what it costs: short streams through the eager modules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdrt.engine.weights.source import Source
from sdrt.export.plan.eager import EagerProgram, rehearsal
from sdrt.export.plan.plan import PlannedPackage
from sdrt.export.plan.weights import plan_weights
from sdrt.export.quantise.fp8 import (
    Linears,
    input_scale,
    is_quantised,
    quantise_weight,
    through_fp8,
)
from sdrt.export.quantise.material import CalibrationError, Material
from sdrt.export.recipe import Recipe
from sdrt.export.tensorrt.settings import Settings
from sdrt.kernels.measure import relative_error
from sdrt.runtime.directory.contents import TextSpec
from sdrt.runtime.sample_clip import sample_clip
from sdrt.runtime.session import Session
from sdrt.runtime.video.reader import VideoError, open_input

PROMPT = "a fox walks through the snow, watercolour"


@dataclass(frozen=True)
class Calibration:
    """The largest inputs of the quantised linears, and what quantising them does."""

    largest: dict[str, float]
    """Weight -> largest absolute value of its linear's input, over all steps and phases."""
    range_errors: dict[str, float]
    """DiT range -> relative error of its result, given the same input, the last time it ran."""
    latent_error: float
    """Relative error of the latents after the last AR step; errors in the ring add up to it."""


@dataclass(frozen=True)
class _Model:
    """The eager programs of a preset, all with the same weights."""

    recipe: Recipe
    """With weights in every stage, so that each can be run from its plan."""
    source: Source
    device: torch.device
    text: TextSpec
    directory: Path
    material: Material

    def run(self, wrap: Callable[[str, PlannedPackage, EagerProgram], object], say) -> Tensor:
        """Stream with each program as ``wrap`` returns it; return the last latents."""
        plan, preset = self.recipe.plan(), self.recipe.preset
        baked = dict(plan_weights(plan, preset, self.source, self.device, baked=True))
        tables = dict(plan_weights(plan, preset, self.source, self.device))
        programs = {}
        for name, planned in plan.packages.items():
            programs[name] = wrap(name, planned, EagerProgram(planned, baked))
        where = (self.device, self.text, self.directory)
        with rehearsal(self.recipe, plan, programs, tables, *where) as session:
            return self._stream(session, say)

    def _stream(self, session: Session, say) -> Tensor:
        session.prepare(PROMPT, seed=0)
        frames = self._frames(session)
        last = self.material.steps - 1
        for step in range(last + 1):
            say(step / (last + 1), step == last)
            count = session.chunk_frames()
            session.step(np.stack([next(frames) for _ in range(count)]) if count else None)
        return session.steps.result("diffuse", last).float().clone()

    def _frames(self, session: Session) -> Iterator[np.ndarray]:
        """Yield the material at the stream's size; there is enough of it."""
        stream = session.stream
        count = stream.first_frames_in + (self.material.steps - 1) * stream.frames_in
        clip = self.material.clip
        if clip is None:
            yield from sample_clip(count, stream.height, stream.width)
            return
        try:
            source = open_input(clip, stream.width, stream.height, stream.frame_rate)
            for index in range(count):
                frame = next(source, None)
                if frame is None:
                    raise CalibrationError(
                        f"--calibration-clip {clip}: {index} frames; {self.material.steps} AR "
                        f"steps take {count}"
                    )
                yield frame
        except VideoError as error:
            raise CalibrationError(f"--calibration-clip {error}") from None

    def names(self, planned: PlannedPackage) -> dict[str, str]:
        """Return parameter -> weight of the linears to quantise."""
        return {
            parameter: weight
            for parameter, weight in planned.baked.items()
            if is_quantised(weight, self.recipe.fp8)
        }


class _Watched:
    """An eager program whose chosen linears follow a rule."""

    def __init__(self, program: EagerProgram, names: Mapping[str, str], rule) -> None:
        self._program, self._linears = program, Linears(program.stage, names, rule)

    def run(self, arguments: Sequence[Tensor]) -> None:
        with self._linears:
            self._program.run(arguments)


class _Compared:
    """A quantised program that, while ``active``, also runs unquantised on the same arguments."""

    active = False

    def __init__(self, plain: EagerProgram, quantised: _Watched, outputs: slice) -> None:
        self._plain, self._quantised, self._outputs = plain, quantised, outputs
        self.error = 0.0

    def run(self, arguments: Sequence[Tensor]) -> None:
        expected = [tensor.clone() for tensor in arguments] if self.active else None
        self._quantised.run(arguments)
        if expected is not None:
            self._plain.run(expected)
            result = self._outputs.start  # the residual stream, or the latent
            self.error = relative_error(arguments[result], expected[result])


def calibrate(
    recipe: Recipe,
    source: Source,
    device: torch.device,
    text: TextSpec,
    directory: Path,
    material: Material,
    on_progress: Callable[[float, str], object],
) -> Calibration:
    """Stream twice: once to see the inputs of the linears, once with them quantised.

    Args:
        recipe: its FP8 groups are calibrated.
        device: where the eager modules run, in the preset's precision.
        text: what encodes the prompt, with its files in ``directory``.
        on_progress: called with the fraction that is done and what is being done.
    Raises:
        CalibrationError: the clip cannot be read or is too short.
    """
    baking = {
        "device": device.type,
        "backends": dict.fromkeys(recipe.backends, "tensorrt"),
        "tensorrt": Settings(),
        "how": {},
    }
    recipe = recipe.model_copy(update=baking)
    model = _Model(recipe, source, device, text, directory, material)
    largest: dict[str, float] = {}
    quantised: dict[str, Tensor] = {}

    def see(name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().amax()))
        return x, weight

    def quantise(name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if name not in quantised:
            packed, scale = quantise_weight(weight)
            real = packed.float() * scale.float().unsqueeze(1)
            quantised[name] = real.to(weight.dtype)
        scale = input_scale(largest[name], x.dtype).to(x.device)
        return through_fp8(x, scale), quantised[name]

    expected = model.run(
        lambda _, planned, program: _Watched(program, model.names(planned), see),
        lambda done, _: on_progress(done / 2, "calibrating"),
    )
    compared: dict[str, _Compared] = {}

    def wrap(name: str, planned: PlannedPackage, program: EagerProgram) -> object:
        flat, names = planned.module, model.names(planned)
        if not names:
            return program
        outputs = slice(flat.inputs, flat.inputs + flat.outputs)
        compared[name] = _Compared(program, _Watched(program, names, quantise), outputs)
        return compared[name]

    def measuring(done: float, is_last: bool) -> None:
        for program in compared.values():
            # The first chunk's plans run in the first step only.
            program.active = is_last or done == 0
        on_progress(0.5 + done / 2, "measuring the loss")

    latents = model.run(wrap, measuring)
    errors = {name: program.error for name, program in compared.items()}
    return Calibration(largest, errors, relative_error(latents, expected))
