"""From a weights source to the tensors that a plan's packages take, in their dtypes."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sdrt.engine.dit import weights as dit_weights
from sdrt.engine.how import NOTHING, How
from sdrt.engine.preset.preset import Preset
from sdrt.engine.weights.source import Source
from sdrt.export.plan.plan import Plan


def plan_weights(
    plan: Plan,
    preset: Preset,
    source: Source,
    device: torch.device,
    baked: bool = False,
    choices: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a plan, one at a time: the checkpoint's, then the plan's tables.

    Args:
        device: where conversions run and tensors are yielded.
        choices: implementations that the plan was made with; they decide how weights lie.
        baked: yield the weights that become part of compiled files instead; they have no tables.
    Raises:
        WeightsError: the source lacks tensors or holds others.
    """
    specs = plan.baked if baked else plan.weights
    missing = set(specs) - set(plan.tables)
    for name, tensor in _converted(preset, source, device, choices or NOTHING) if missing else ():
        if name not in missing:
            continue  # the other half of an autoencoder, say
        spec = specs[name]
        assert tuple(tensor.shape) == spec.shape, f"{name}: {tuple(tensor.shape)} != {spec.shape}"
        missing.remove(name)
        yield name, tensor.to(getattr(torch, spec.dtype))
    assert not missing, f"no conversion yields {sorted(missing)[:5]}"
    for name, table in plan.tables.items() if not baked else ():
        yield name, table.to(device)


def _converted(
    preset: Preset, source: Source, device: torch.device, how: How
) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of all modules under the names that plans give them."""
    shapes = dit_weights.public_shapes(preset.dit)
    tensors = source.load("dit", shapes, device=device)
    yield from dit_weights.from_public(preset.dit, tensors, how)
    for coder in preset.coders:
        tensors = source.load(coder.component, coder.public_shapes(preset), device=device)
        for name, tensor in coder.from_public(preset, tensors, how).items():
            yield f"{coder.name}.model.{name}", tensor
