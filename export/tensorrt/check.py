"""Every stage of a plan, one after another: onnxruntime against the eager module, in float32."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sdrt.engine.preset.preset import Preset
from sdrt.export.plan.eager import EagerProgram
from sdrt.export.plan.plan import Plan, meta_tensor
from sdrt.export.tensorrt.coders import FIXED_POINT
from sdrt.export.tensorrt.onnx import export_stage
from sdrt.export.tensorrt.onnxruntime import TOLERANCE, CheckError, OrtProgram
from sdrt.runtime.directory.specs import Call, Phase, Ref, Role


class StageCheck:
    """Compares stages in a plan's order, each with what the ones before it handed on.

    What no stage made is noise, or where noise has no meaning (positions, timesteps, slots) what
    a stream with a full window has there. A stage's states are dropped after it, so that memory
    for one stage is enough.
    """

    def __init__(self, preset: Preset, plan: Plan) -> None:
        """Take a plan in float32, and the preset it is of."""
        self._preset, self._plan = preset, plan
        self._calls: dict[str, tuple[Call, Phase]] = {}
        for stage in plan.stages.values():
            for call in stage.calls:
                self._calls.setdefault(call.package, (call, stage.phase))
        self._handed_on: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def run(self, name: str, weights: Mapping[str, Tensor]) -> float:
        """Return the largest relative error among a stage's results and new states.

        Args:
            weights: what the package bakes in; they are taken to float32.
        Raises:
            CheckError: it is beyond the tolerance.
            ExportError: the stage cannot be exported.
        """
        planned, (call, phase) = self._plan.packages[name], self._calls[name]
        weights = {weight: tensor.float() for weight, tensor in weights.items()}
        before = [self._sample(ref, phase) for ref in call.arguments]
        results = slice(planned.module.inputs, planned.module.inputs + planned.module.outputs)
        for result in before[results]:
            result.zero_()
        eager = [tensor.clone() for tensor in before]
        made = [tensor.clone() for tensor in before]
        EagerProgram(planned, weights).run(eager)
        with torch.no_grad():
            OrtProgram(export_stage(planned, weights)).run(made)
        for ref, value in zip(call.outputs, eager[results], strict=True):
            self._handed_on[ref.name] = value
        worst = 0.0
        for argument, *tensors in zip(call.arguments, made, eager, before, strict=True):
            error = _difference(*tensors)
            if not error <= TOLERANCE:  # which a NaN is not either
                raise CheckError(
                    f"in onnxruntime {argument} is off by {error:.1e} (relative) from the eager "
                    f"module; {TOLERANCE:.0e} is allowed"
                )
            worst = max(worst, error)
        return worst

    def _sample(self, ref: Ref, phase: Phase) -> Tensor:
        """Return a value of an argument, in its shape and strides."""
        if ref.kind == "weight":
            return self._plan.tables[ref.name].clone()
        spec = self._plan.buffers[ref.name]
        whole = meta_tensor(spec)
        meta = whole if ref.rows is None else whole[slice(*ref.rows)]
        value = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype)
        known = self._handed_on.get(ref.name)
        if known is None:
            known = self._typical(spec.role, value, phase)
        elif ref.rows is not None and known.shape == whole.shape:
            known = known[slice(*ref.rows)]
        return value.copy_(known)

    def _typical(self, role: Role, like: Tensor, phase: Phase) -> Tensor:
        """Return what a stream past its full window has in a buffer, or noise."""
        preset, window = self._preset, self._preset.stream.window_frames
        match role:
            case "timestep":
                return self._plan.tables["schedule.timesteps"][: len(like)].reshape(like.shape)
            case "sigma":
                return self._plan.tables["schedule.next_sigmas"][:1]
            case "position":
                now = 0 if phase == "first" else window + preset.stream.chunk_latent_frames + 1
                return now - torch.arange(len(like))
            case "noise_scale":
                return torch.tensor([round((preset.schedule.noise_scale or 0) * FIXED_POINT)])
            case "queue":
                slots = preset.effective_sink_frames + torch.arange(like.shape[1])
                return slots.clamp(max=window - 1)
            case "count":
                return torch.tensor(1)
            case "picture":
                return torch.randint(0, 256, like.shape, generator=self._generator)
        if like.is_floating_point():
            return torch.randn(like.shape, generator=self._generator)
        return torch.tensor(0)  # a result


def _difference(made: Tensor, reference: Tensor, before: Tensor) -> float:
    """Return the relative error of what changed; pictures may be one level off by rounding."""
    changed = (reference.double() - before.double()).norm()
    error = (made.double() - reference.double()).abs()
    if made.dtype == torch.uint8:
        error = (error - 1).clamp(min=0)
    off = error.norm()
    return float(off / changed) if off else 0.0
