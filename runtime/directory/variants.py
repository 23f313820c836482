"""Choosing what an engine directory holds for the device at hand."""

from pathlib import Path

import torch

from sdrt.runtime.directory.checks import MachineError, check_machine
from sdrt.runtime.directory.manifest import Manifest


def choose_variant(
    directory: Path, manifest: Manifest, device: str | None
) -> tuple[torch.device, Manifest]:
    """Return the device to run on and what was built for it.

    Args:
        device: ``cuda``, ``cuda:N`` or ``cpu``; the first that fits unless given.
    Raises:
        MachineError: nothing fits; the message names what was built for and what is here.
    """
    # A card goes before the CPU, which is always there.
    variants = sorted(manifest.variants(), key=lambda variant: variant.device.type != "cuda")
    refusals: list[MachineError] = []
    for variant in variants:
        try:
            return check_machine(directory, variant, device), variant
        except MachineError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    built = "; ".join(variant.device.name for variant in variants)
    reasons = "; ".join(refusal.reason for refusal in refusals)
    raise MachineError(directory, f"built for {built}; none of them fits here: {reasons}")
