"""Choosing what an engine directory holds for the device at hand."""

from pathlib import Path

import torch

from sdrt.runtime.directory.checks import check_machine
from sdrt.runtime.directory.manifest import Manifest, ManifestError


def choose_variant(
    directory: Path, manifest: Manifest, device: str | None
) -> tuple[torch.device, Manifest]:
    """Return the device to run on and what was built for it.

    Args:
        device: ``cuda``, ``cuda:N`` or ``cpu``; the first that fits unless given.
    Raises:
        ManifestError: nothing fits; the message names what was built for and what is here.
    """
    # A card goes before the CPU, which is always there.
    variants = sorted(manifest.variants(), key=lambda variant: variant.device.type != "cuda")
    refusals = []
    for variant in variants:
        try:
            return check_machine(directory, variant, device), variant
        except ManifestError as error:
            refusals.append(str(error))
    if len(refusals) == 1:
        raise ManifestError(refusals[0])
    built = "; ".join(variant.device.name for variant in variants)
    raise ManifestError(
        f"{directory}: built for {built}; none of them fits here: "
        + "; ".join(refusal.removeprefix(f"{directory}: ") for refusal in refusals)
    )
