"""A plan in the making: what it is of, its sizes, and the builder that collects it."""

from collections.abc import Mapping, Sequence

import torch

from sdrt.engine.preset.preset import Preset
from sdrt.export.plan.builder import PlanBuilder
from sdrt.export.tensorrt.choice import RingMode
from sdrt.runtime.directory.manifest import Backend
from sdrt.runtime.directory.specs import Ref, Role

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Draft:
    """What flows and stages share while they lay out a plan."""

    def __init__(
        self,
        preset: Preset,
        ranges: Sequence[tuple[int, int]],
        device: str,
        backends: Mapping[str, Backend],
        how: Mapping[str, str],
        ring: RingMode,
    ) -> None:
        """Start a plan.

        Args:
            ranges: consecutive DiT block ranges ``(first, last)`` that cover all layers.
            device: ``cuda`` or ``cpu``: decides memory formats.
            how: place -> implementation, as :mod:`sdrt.export.tune` finds them.
            ring: what TensorRT, where it is used, can do with the K/V ring.
        """
        self.preset, self.ranges, self.device = preset, ranges, device
        self.backends, self.how = backends, how
        self.ring: RingMode = ring
        self.dtype = DTYPES[preset.precision]
        self.builder = PlanBuilder(self.dtype, channels_last_3d=device == "cuda")
        self.steps = len(preset.schedule.steps)

    def latents(self, name: str, *leading: int, role: Role = "latent", state: bool = False) -> Ref:
        """Declare a float32 buffer of latents ``[*leading, C, h, w]``."""
        shape = (*leading, *self.preset.latent_shape)
        return self.builder.buffer(name, shape, torch.float32, role, "state" if state else "io")
