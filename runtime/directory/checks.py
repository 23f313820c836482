"""What is checked before an engine directory is used: machine, versions, files, hashes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from sdrt.runtime.directory.contents import FileSpec
from sdrt.runtime.directory.manifest import MachineError, Manifest, ManifestError, file_sha256
from sdrt.runtime.programs.loaders import check_programs

HASH_THREADS = 8


def check_machine(directory: Path, manifest: Manifest, device: str | None) -> torch.device:
    """Return the device to run on, or refuse an engine built for another machine.

    Raises:
        MachineError: device type, GPU, kind of CPU or torch version differ (both are named).
        ManifestError: ``device`` names none.
    """
    built = manifest.device
    try:
        target = torch.device(device or built.type)
    except RuntimeError:
        raise ManifestError(f"device {device!r}: no such device; use cuda, cuda:N or cpu") from None
    hint = f"rebuild it here: {manifest.rebuild_command(directory)}"
    if target.type != built.type:
        here = manifest.rebuild_command(directory, target.type)
        raise MachineError(
            directory,
            f"built for {built.type} ({built.name}), not for {target.type}; "
            f"rebuild it here: {here}",
        )
    if target.type == "cpu":
        # Packages hold the builder's vector instructions; elsewhere those end the process.
        name = cpu_name()
        if name != built.name:
            raise MachineError(directory, f"built for {built.name}, this is {name}; {hint}")
    if target.type == "cuda" and not built.targets:
        if not torch.cuda.is_available():
            raise MachineError(
                directory, f"built for {built.name}, but no CUDA device is here; {hint}"
            )
        name = torch.cuda.get_device_name(target)
        capability = torch.cuda.get_device_capability(target)
        if name != built.name or capability != built.capability:
            raise MachineError(
                directory,
                f"built for {built.name} (capability {built.capability}), "
                f"this is {name} (capability {capability}); {hint}",
            )
    check_programs(directory, manifest, target)
    return target


def cpu_name() -> str:
    """Return the kind of this machine's CPU, as an engine's manifest names it."""
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"


@contextmanager
def verify_files(directory: Path, manifest: Manifest) -> Iterator[None]:
    """Check every file's size and the packages' hashes at once, the weights' while the body loads.

    A package is code, so it is not loaded before its hash is known; the weights are many times
    larger, and are hashed beside their loading. The text encoder's files are hashed when it loads.

    Raises:
        ManifestError: a file is missing, truncated or changed; it names the file and both values.
    """
    hint = f"rebuild the engine: {manifest.rebuild_command(directory)}"
    packages = [
        FileSpec(file=package.file, sha256=package.sha256, bytes=package.bytes)
        for package in manifest.packages.values()
    ]
    files = [*packages, *manifest.weights.files]
    for spec in [*files, *manifest.text.files]:
        path = directory / spec.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise ManifestError(f"{path}: missing; {hint}")
        if size != spec.bytes:
            raise ManifestError(f"{path}: {size} bytes, expected {spec.bytes}; {hint}")
    with verify_hashes(directory, files, hint, before=len(packages)):
        yield


@contextmanager
def verify_hashes(
    directory: Path, files: Sequence[FileSpec], hint: str, before: int = 0
) -> Iterator[None]:
    """Hash files while the body runs.

    Args:
        hint: what to do about a changed file, the end of the message.
        before: so many of the first files are compared before the body runs.
    Raises:
        ManifestError: a file was changed; it names the file and both values.
    """
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        hashes: list[Future[str]] = [
            pool.submit(file_sha256, directory / spec.file) for spec in files
        ]

        def compare(first: int, last: int) -> None:
            for spec, digest in zip(files[first:last], hashes[first:last], strict=True):
                if (found := digest.result()) != spec.sha256:
                    raise ManifestError(
                        f"{directory / spec.file}: SHA-256 {found[:12]}…, expected "
                        f"{spec.sha256[:12]}…: the file was changed or damaged; {hint}"
                    )

        compare(0, before)
        try:
            yield
        except Exception:
            compare(before, len(files))  # a wrong hash explains a failed load better
            raise
        compare(before, len(files))
