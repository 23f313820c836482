"""A session over the eager modules: the reference that compiled packages are compared with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sdrt.engine.preset.preset import Preset
from sdrt.engine.weights.source import Source
from sdrt.export.plan.eager import rehearsal
from sdrt.export.plan.make import make_plan
from sdrt.export.plan.plan import FlatModule, Plan
from sdrt.export.plan.weights import plan_weights
from sdrt.kernels.dispatch import references
from sdrt.runtime.session import Session


class EagerProgram:
    """A stage module behind the interface of a package; every op runs its plain reference."""

    def __init__(self, module: FlatModule) -> None:
        self._module = module

    def run(self, arguments: Sequence[Tensor]) -> None:
        with references():
            self._module(*arguments)


def place_weights(
    plan: Plan, preset: Preset, source: Source, device: torch.device
) -> dict[str, Tensor]:
    """Return a plan's weights on a device, in the strides that its packages take."""
    placed = {}
    for name, tensor in plan_weights(plan, preset, source, device):
        stride = plan.weights[name].stride
        target = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device)
        placed[name] = target.copy_(tensor)
    return placed


@torch.inference_mode()
def eager_session(
    preset: Preset,
    weights: Mapping[str, Tensor] | Source,
    device: str = "cpu",
    ranges: Sequence[tuple[int, int]] | None = None,
    choices: Mapping[str, str] | None = None,
) -> Session:
    """Return a session that runs the eager modules stage by stage, without graphs.

    Args:
        weights: a source to convert, or the placed weights of another session, to share.
        choices: the implementations of that session: they decide how its weights lie.
    """
    target = torch.device(device)
    blocks = ranges or [(0, preset.dit.num_layers)]
    plan = make_plan(preset, blocks, target.type, how=choices)
    if isinstance(weights, Mapping):
        placed = weights
    else:
        placed = place_weights(plan, preset, weights, target)
    programs = {name: EagerProgram(package.module) for name, package in plan.packages.items()}
    return rehearsal(preset, plan, programs, placed, target)
