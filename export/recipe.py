"""The recipe of an engine: all that determines its plan."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from sdrt.engine.preset.preset import Preset
from sdrt.export.plan.make import make_plan
from sdrt.export.plan.plan import Plan
from sdrt.export.tensorrt.settings import Settings
from sdrt.runtime.directory.contents import Backend

Ranges = tuple[tuple[int, int], ...]
"""Consecutive block ranges of the DiT, first and last + 1, that cover all layers."""


class Recipe(BaseModel):
    """Everything that a plan follows from; as JSON it crosses to other processes.

    What an engine is made of besides (weights, the GPU at hand, versions) decides how the plan
    is carried out, and is no part of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset
    ranges: Ranges
    device: Literal["cuda", "cpu"]
    """The kind of device that is built for, which need not be here: it decides memory formats."""
    backends: dict[str, Backend]
    """Stage -> backend, for every stage of the preset that takes one."""
    tensorrt: Settings = Settings()
    """How TensorRT plans are built, where there are any."""
    fp8: tuple[str, ...] = ()
    """Groups of the DiT's linears that are asked for in FP8."""
    how: dict[str, str] = {}
    """Place, such as ``dit.attention.ring.steady`` -> implementation; else what runs anywhere."""

    @classmethod
    def of(
        cls,
        preset: Preset,
        device: str = "cpu",
        ranges: Ranges | None = None,
        backends: Mapping[str, Backend] | Backend = "inductor",
        **settings: object,
    ) -> Self:
        """Return a recipe: the DiT as one range, Inductor for all stages, unless given.

        Args:
            backends: for all stages, or for some.
            settings: other fields.
        """
        one, some = (backends, {}) if isinstance(backends, str) else ("inductor", backends)
        return cls.model_validate(
            {
                "preset": preset,
                "ranges": ranges or ((0, preset.dit.num_layers),),
                "device": device,
                "backends": dict.fromkeys(stage_names(preset), one) | dict(some),
                **settings,
            }
        )

    def in_precision(self, precision: str) -> Self:
        """Return the same recipe for the preset in another precision."""
        preset = self.preset.model_copy(update={"precision": precision})
        return self.model_copy(update={"preset": preset})

    def plan(self) -> Plan:
        """Return packages, buffers and stages.

        Raises:
            BackendError: a backend cannot hold the preset.
        """
        return make_plan(self)


def stage_names(preset: Preset) -> tuple[str, ...]:
    """Return the stages of a preset that take a backend of their own."""
    encoder = preset.input_coder
    encoders = () if encoder is None else (encoder.encoder_stage,)
    return (*encoders, "dit", preset.output_coder.decoder_stage)
