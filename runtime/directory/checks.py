"""What is checked before an engine directory is used: machine, versions, files, hashes."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from sdrt.runtime.directory.manifest import (
    RTX_ARCHITECTURES,
    FileSpec,
    Manifest,
    ManifestError,
    file_sha256,
)
from sdrt.runtime.programs.tensorrt import import_library

HASH_THREADS = 8


class MachineError(ManifestError):
    """An engine directory was built for another machine."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(f"{directory}: {reason}")
        self.reason = reason
        """The message without the directory."""


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
    built_torch = manifest.versions.get("torch")
    backends = {package.backend for package in manifest.packages.values()}
    if "inductor" in backends and built_torch != torch.__version__:
        raise MachineError(
            directory, f"built with torch {built_torch}, this is torch {torch.__version__}; {hint}"
        )
    if target.type == "cpu":
        # Packages hold the builder's vector instructions; elsewhere those end the process.
        name = cpu_name()
        if name != built.name:
            raise MachineError(directory, f"built for {built.name}, this is {name}; {hint}")
    if built.targets:
        _check_target(directory, manifest, target)
    elif target.type == "cuda":
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
    for package in manifest.packages.values():
        if package.engine is not None:
            try:
                import_library(package.engine)
            except ManifestError as error:
                raise MachineError(directory, str(error)) from None
    return target


def _check_target(directory: Path, manifest: Manifest, device: torch.device) -> None:
    """Refuse a card that the plans of tensorrt_rtx were not built for."""
    built = f"built for {manifest.device.name} (plans of tensorrt_rtx)"
    if not torch.cuda.is_available():
        reason = f"{built}, but no CUDA device is here; run it on such a card"
        raise MachineError(directory, reason)
    name = torch.cuda.get_device_name(device)
    major, minor = torch.cuda.get_device_capability(device)
    architecture = f"sm_{major}{minor}"
    if architecture in manifest.device.targets:
        return
    if architecture in RTX_ARCHITECTURES:
        advice = f"add it with {manifest.add_command(directory, architecture)}"
    else:
        advice = f"such plans cannot run on {architecture}: use --backend inductor or tensorrt"
    raise MachineError(directory, f"{built}, this is {name} ({architecture}); {advice}")


def cpu_name() -> str:
    """Return the kind of this machine's CPU, as an engine's manifest names it."""
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"


@contextmanager
def verify_files(directory: Path, manifest: Manifest) -> Iterator[None]:
    """Check every file's size and the packages' hashes at once, the others' while the body loads.

    A package is code, so it is not loaded before its hash is known; the weights are many times
    larger, and are hashed beside their loading.

    Raises:
        ManifestError: a file is missing, truncated or changed; it names the file and both values.
    """
    hint = f"rebuild the engine: {manifest.rebuild_command(directory)}"
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

        def compare(first: int, last: int) -> None:
            for spec, digest in zip(files[first:last], hashes[first:last], strict=True):
                if (found := digest.result()) != spec.sha256:
                    raise ManifestError(
                        f"{directory / spec.file}: SHA-256 {found[:12]}…, expected "
                        f"{spec.sha256[:12]}…: the file was changed or damaged; {hint}"
                    )

        compare(0, len(packages))
        try:
            yield
        except Exception:
            compare(len(packages), len(files))  # a wrong hash explains a failed load better
            raise
        compare(len(packages), len(files))
