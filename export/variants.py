"""Mixed engine directories: the same preset and weights, built for several devices."""

import os
from collections.abc import Mapping
from pathlib import Path

from sdrt.engine.preset.preset import Preset, to_dict
from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.contents import DeviceSpec, FileSpec
from sdrt.runtime.directory.manifest import (
    MANIFEST_NAME,
    Manifest,
    ManifestError,
    Variant,
    read_manifest,
    write_manifest,
)


class MixedError(SdrtError):
    """A variant does not fit the engine directory; the message says why."""


def check_addition(
    out: Path, preset: Preset, sources: Mapping[str, str], device: DeviceSpec
) -> None:
    """Refuse to add to what is no engine directory, or is of another preset or other weights.

    Raises:
        MixedError: both values are named.
    """
    try:
        manifest = read_manifest(out)
    except ManifestError as error:
        raise MixedError(f"--add: {error}") from None
    if manifest.preset != to_dict(preset):
        raise MixedError(
            f"--add: {out} holds preset {manifest.preset['name']} with other settings than "
            f"{preset.name} has here; build a directory of its own with --out"
        )
    for component, source in sources.items():
        held = manifest.weights.sources.get(component)
        if held != source:
            raise MixedError(f"--add: {out} holds weights {component} = {held}, not {source}")
    for variant in manifest.variants():
        if variant.device == device:
            raise MixedError(f"--add: {out} is built for {device.name} already")


def add_variant(partial: Path, manifest: Manifest, out: Path) -> Manifest:
    """Move a finished build into an engine directory as a variant; return the new manifest.

    The files move first and the manifest is replaced in one step, so that the directory can be
    loaded at any time.
    """
    folder = _free_folder(out)
    (partial / MANIFEST_NAME).unlink()
    (out / folder).parent.mkdir(exist_ok=True)
    partial.rename(out / folder)
    packages = {
        name: spec.model_copy(update={"file": f"{folder}/{spec.file}"})
        for name, spec in manifest.packages.items()
    }
    files = tuple(
        FileSpec(file=f"{folder}/{spec.file}", sha256=spec.sha256, bytes=spec.bytes)
        for spec in manifest.weights.files
    )
    shared = {name: getattr(manifest, name) for name in Variant.model_fields}
    weights = manifest.weights.model_copy(update={"files": files})
    variant = Variant(**shared | {"packages": packages, "weights": weights})
    whole = read_manifest(out)
    builds = (*whole.known_builds, *manifest.known_builds)
    whole = whole.model_copy(update={"others": (*whole.others, variant), "builds": builds})
    scratch = out / "new"
    scratch.mkdir()
    write_manifest(scratch, whole)
    os.replace(scratch / MANIFEST_NAME, out / MANIFEST_NAME)
    scratch.rmdir()
    return whole


def _free_folder(out: Path) -> str:
    index = 1
    while (out / f"variants/{index}").exists():
        index += 1
    return f"variants/{index}"
