"""TensorRT's settings: libraries, the K/V ring, the architectures that plans are built for."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from sdrt.engine.preset.preset import Preset
from sdrt.export.errors import BackendError
from sdrt.runtime.directory.contents import RTX_ARCHITECTURES, Backend

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend -> Python package."""

RingMode = Literal["length", "mask", "copy"]
"""The K/V ring in a plan: updated in place and read up to a length; updated in place and read
through a mask; or written to a bank and copied back, which any version can."""


@dataclass(frozen=True)
class Settings:
    """Builder settings; they are part of what a plan is built from."""

    targets: tuple[str, ...] = ()
    """Architectures for tensorrt_rtx, such as ``sm_89``; empty: the GPU that is here."""
    optimization_level: int | None = None
    """0 to 5; the library's own default unless given."""
    aux_streams: int = 0
    """Streams a plan may use beside the caller's; none needs the least memory."""
    workspace_mib: int | None = None
    """Most scratch memory of a layer; no limit unless given."""
    timing_cache: str | None = None
    """File that keeps kernel timings between builds (``tensorrt`` only: RTX has no such thing)."""
    ring: RingMode = "length"
    """What the library can do with the K/V ring."""


def uses_tensorrt(backends: Mapping[str, Backend]) -> bool:
    """Tell whether any stage is built by TensorRT."""
    return not LIBRARIES.keys().isdisjoint(backends.values())


def choose_ring(backend: str) -> RingMode:
    """Return the best that the installed library of the DiT's backend can do with the K/V ring.

    Without a library the answer means nothing: :func:`check_installed` refuses such a build.
    """
    if backend != "tensorrt":
        return "length"
    try:
        version = importlib.metadata.version("tensorrt")
    except importlib.metadata.PackageNotFoundError:
        return "length"
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < (10, 15):
        return "copy"
    return "mask" if major < 11 else "length"


def check_installed(backend: str, check_onnx: bool) -> None:
    """Refuse a build that lacks the library, or what exports to it.

    Args:
        check_onnx: onnxruntime is needed too.
    Raises:
        BackendError: it names what is missing.
    """
    needed = {"onnx": "onnx", "onnxscript": "onnxscript"}
    needed[LIBRARIES[backend]] = backend
    if check_onnx:
        needed["onnxruntime"] = "onnxruntime"
    missing = [package for name, package in needed.items() if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"--backend {backend} needs {', '.join(missing)}: pip install 'sdrt[{backend}]'"
        )


def choose_targets(
    preset: Preset,
    backends: Mapping[str, Backend],
    target: str | None,
    device: torch.device,
) -> tuple[str, ...]:
    """Return the architectures that plans of tensorrt_rtx are built for; empty without any.

    Args:
        target: such as ``sm_89,sm_120``; the GPU that is here unless given.
    Raises:
        BackendError: the stages cannot be built here, or not for the target.
    """
    kinds = set(backends.values())
    has_gpu = device.type == "cuda" and torch.cuda.is_available()
    if target is not None and kinds != {"tensorrt-rtx"}:
        stage, other = next(pair for pair in backends.items() if pair[1] != "tensorrt-rtx")
        raise BackendError(
            f"--target {target}: stage {stage} is built by {other}, on the GPU it runs on; "
            "only --backend tensorrt-rtx builds for other cards"
        )
    if uses_tensorrt(backends) and target is None and not has_gpu:
        advice = "build on the GPU's machine, or use --backend tensorrt-rtx with --target"
        if kinds == {"tensorrt-rtx"}:
            advice = "give --target, such as sm_89,sm_120"
        raise BackendError(f"no CUDA device is here to build TensorRT plans for: {advice}")
    if "tensorrt-rtx" not in kinds:
        return ()
    targets = tuple(target.split(",")) if target is not None else architectures(device)
    for name in targets:
        if name not in RTX_ARCHITECTURES:
            known = ", ".join(RTX_ARCHITECTURES)
            raise BackendError(
                f"target {name}: plans of tensorrt_rtx cannot run on it, only on {known}; "
                "use --backend tensorrt or inductor on such a card"
            )
    if "sm_75" in targets and preset.precision == "bf16":
        raise BackendError("target sm_75: it has no bf16; use --set precision=fp16")
    return targets


def architectures(device: torch.device) -> tuple[str, ...]:
    """Return the architecture of a GPU that is here, such as ``sm_90``; none of a CPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return ()
    major, minor = torch.cuda.get_device_capability(device)
    return (f"sm_{major}{minor}",)
