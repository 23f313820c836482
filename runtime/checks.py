"""What is checked before an engine directory is used: machine, versions, files, hashes."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from sdrt.runtime.manifest import FileSpec, Manifest, ManifestError, file_sha256

HASH_THREADS = 8


def check_machine(directory: Path, manifest: Manifest, device: str | None) -> torch.device:
    """Return the device to run on, or refuse an engine built for another machine.

    Raises:
        ManifestError: device type, GPU or torch version differ (both values are named).
    """
    built = manifest.device
    try:
        target = torch.device(device or built.type)
    except RuntimeError:
        raise ManifestError(f"device {device!r}: no such device; use cuda, cuda:N or cpu") from None
    hint = f"rebuild it here: {manifest.rebuild_command()}"
    if target.type != built.type:
        raise ManifestError(
            f"{directory}: built for {built.type} ({built.name}), not for {target.type}; {hint}"
        )
    built_torch = manifest.versions["torch"]
    if built_torch != torch.__version__:
        raise ManifestError(
            f"{directory}: built with torch {built_torch}, this is torch {torch.__version__}; {hint}"
        )
    if target.type == "cuda":
        if not torch.cuda.is_available():
            raise ManifestError(f"{directory}: built for {built.name}, but no CUDA device is here")
        name = torch.cuda.get_device_name(target)
        capability = torch.cuda.get_device_capability(target)
        if name != built.name or capability != built.capability:
            raise ManifestError(
                f"{directory}: built for {built.name} (capability {built.capability}), "
                f"this is {name} (capability {capability}); {hint}"
            )
    return target


@contextmanager
def verify_files(directory: Path, manifest: Manifest) -> Iterator[None]:
    """Check every file's size at once, and its hash while the body loads it.

    Raises:
        ManifestError: a file is missing, truncated or changed; it names the file and both values.
    """
    hint = f"rebuild the engine: {manifest.rebuild_command()}"
    packages = [
        FileSpec(file=package.file, sha256=package.sha256, bytes=package.bytes)
        for package in manifest.packages.values()
    ]
    files = [*packages, *manifest.weights.files, *manifest.text.files]
    for spec in files:
        path = directory / spec.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise ManifestError(f"{path}: missing; {hint}")
        if size != spec.bytes:
            raise ManifestError(f"{path}: {size} bytes, expected {spec.bytes}; {hint}")
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        hashes: list[Future[str]] = [
            pool.submit(file_sha256, directory / spec.file) for spec in files
        ]
        damage = None
        try:
            yield
        except (ManifestError, RuntimeError, ValueError, OSError) as error:
            damage = error  # a wrong hash explains a failed load better than the failure does
        for spec, digest in zip(files, hashes, strict=True):
            if (found := digest.result()) != spec.sha256:
                raise ManifestError(
                    f"{directory / spec.file}: SHA-256 {found[:12]}…, expected "
                    f"{spec.sha256[:12]}…: the file was changed or damaged; {hint}"
                )
        if damage is not None:
            raise damage
