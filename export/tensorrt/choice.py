"""Which backend builds which stage, and for which architectures."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Literal

import torch

from sdrt.engine.preset.preset import Preset
from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.manifest import RTX_ARCHITECTURES, Backend

RingMode = Literal["length", "mask", "copy"]
"""The K/V ring in a plan: updated in place and read up to a length; updated in place and read
through a mask; or written to a bank and copied back, which any version can."""

BACKENDS = ("inductor", "tensorrt", "tensorrt-rtx")


class BackendError(SdrtError):
    """A backend that does not exist or cannot build a preset; the message says what can."""


def stage_names(preset: Preset) -> tuple[str, ...]:
    """Return the stages of a preset that take a backend of their own."""
    encoder = preset.input_coder
    encoders = (encoder.encoder_stage,) if encoder else ()
    return (*encoders, "dit", preset.output_coder.decoder_stage)


def choose_backends(
    preset: Preset, backend: str, stage_backends: Sequence[str]
) -> dict[str, Backend]:
    """Return stage -> backend.

    Args:
        backend: of all stages; stage_backends: ``STAGE=BACKEND`` for single ones.
    Raises:
        BackendError: no such stage or backend, or both flavours of TensorRT at once.
    """
    chosen = dict.fromkeys(stage_names(preset), backend)
    for pair in stage_backends:
        stage, _, value = pair.partition("=")
        if stage not in chosen:
            known = ", ".join(chosen)
            raise BackendError(f"--stage-backend {pair}: no such stage; this preset has {known}")
        chosen[stage] = value
    for value in (backend, *chosen.values()):
        if value not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise BackendError(f"backend {value!r}: no such backend; use one of {known}")
    if {"tensorrt", "tensorrt-rtx"} <= set(chosen.values()):
        raise BackendError("backends tensorrt and tensorrt-rtx in one engine: choose one of them")
    return chosen  # type: ignore[return-value]


def choose_ring(backends: Mapping[str, Backend], check_onnx: bool = False) -> RingMode:
    """Return the best that the installed library can do with the K/V ring.

    Args:
        check_onnx: onnxruntime is needed too.

    Raises:
        BackendError: TensorRT is wanted, and it or what exports to it is not installed.
    """
    for backend in sorted({"tensorrt", "tensorrt-rtx"} & set(backends.values())):
        needed = {"onnx": "onnx", "onnxscript": "onnxscript"}
        needed[backend.replace("-", "_")] = backend
        if check_onnx:
            needed["onnxruntime"] = "onnxruntime"
        missing = [package for name, package in needed.items() if find_spec(name) is None]
        if missing:
            raise BackendError(
                f"--backend {backend} needs {', '.join(missing)}: pip install 'sdrt[{backend}]'"
            )
    if backends["dit"] != "tensorrt":
        return "length"
    version = importlib.metadata.version("tensorrt")
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < (10, 15):
        return "copy"
    return "mask" if major < 11 else "length"


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
    if kinds != {"inductor"} and target is None and not has_gpu:
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
