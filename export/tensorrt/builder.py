"""The TensorRT backend: an ONNX graph to a plan, checked by the builder's own log."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrt.export.errors import PackageError
from sdrt.export.tensorrt.monitor import make_monitor
from sdrt.export.tensorrt.settings import LIBRARIES, Settings

if TYPE_CHECKING:  # needs the ONNX packages, which a build of packages does without
    from sdrt.export.tensorrt.onnx import OnnxStage


class PlanError(PackageError):
    """A plan could not be built; the message says what stood in the way."""


class Cancelled(PlanError):
    """The build of a plan was given up because nobody waits for it."""


@dataclass
class BuildReport:
    """What the builder said of a plan."""

    fused_attentions: int = 0
    fp8_gemms: int = 0
    """Matrix products with both operands in FP8."""
    activation_bytes: int = 0
    layers: list[str] = field(default_factory=list)
    """One line a layer of the built engine: its name and what was fused into it."""


def load_library(backend: str) -> Any:
    """Return the Python package of a backend.

    Raises:
        PlanError: it is not installed.
    """
    name = LIBRARIES[backend]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.replace("_", "-")
        raise PlanError(
            f"--backend {backend} needs the package {package} ({error}): pip install {package}"
        ) from None


def make_logger(trt: Any) -> Any:
    """Return a logger that keeps every message: the checks read them."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[int, str]] = []

        def log(self, severity, message) -> None:
            self.messages.append((int(severity), message))

        def errors(self) -> list[str]:
            return [text for severity, text in self.messages if severity <= int(trt.Logger.ERROR)]

    return Logger()


def build_plan(
    trt: Any,
    stage: "OnnxStage",
    onnx_path: Path,
    settings: Settings,
    on_progress: Callable[[str, float], object] = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[memoryview, BuildReport]:
    """Parse a saved ONNX graph and build a plan.

    Args:
        stage: what ``onnx_path`` holds; says which tensors are channels-last.
        on_progress: called with the builder's phase and the fraction of all that is done.
        cancelled: asked at every step; once it says so, the builder stops.
    Raises:
        Cancelled: ``cancelled`` said so.
        PlanError: the parser or the builder refuses; or a warning shows a plan that would
            compute something else.
    """
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise PlanError(f"the parser refuses it: {'; '.join(reasons) or logger.errors()[:1]}")
    _check_unused(logger)
    _check_caches(trt, network, stage)
    _set_formats(trt, network, stage)
    config = _configure(trt, builder, settings)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = make_monitor(trt, on_progress, cancelled)
    plan = builder.build_serialized_network(network, config)
    if plan is None and cancelled():
        raise Cancelled("given up")
    if plan is None:
        raise PlanError(f"the builder refuses it: {'; '.join(logger.errors()[:3]) or 'no reason'}")
    _check_unused(logger)
    _keep_timings(config, settings)
    report = read_log([text for _, text in logger.messages])
    if report.fused_attentions < stage.attentions and hasattr(trt, "ComputeCapability"):
        raise PlanError(
            f"{report.fused_attentions} of {stage.attentions} attention layers are fused; "
            "the others would need many times the memory"
        )
    if report.fp8_gemms < stage.fp8_linears and hasattr(trt, "ComputeCapability"):
        raise PlanError(
            f"{report.fp8_gemms} of {stage.fp8_linears} linears became FP8 matrix products; "
            "take the other groups out of --fp8"
        )
    return memoryview(plan), report


def read_log(messages: list[str]) -> BuildReport:
    """Return what the builder's log says of fused attention, memory and layers."""
    report = BuildReport()
    for text in "\n".join(messages).splitlines():
        if found := re.search(r"Total Activation Memory: (\d+)", text):
            report.activation_bytes = int(found[1])
        if found := re.match(r"Name: ([^,]+), LayerType: ([^,]+)", text):
            operations = re.search(r"Metadata: (.*)", text)
            made_of = operations[1] if operations else ""
            report.layers.append(f"{found[1]} ({found[2]}) {made_of}".rstrip())
            report.fp8_gemms += found[2] == "gemm" and _is_fp8(text)
    report.fused_attentions = sum("_mha" in layer.split(" ")[0] for layer in report.layers)
    return report


def _is_fp8(layer: str) -> bool:
    """Tell whether a layer's line in the log has FP8 among both its inputs and its constants."""
    operands = re.search(r"Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs:", layer)
    return operands is not None and all("Datatype: FP8" in part for part in operands.groups())


def _check_unused(logger: Any) -> None:
    """Refuse a graph of which the library leaves a part out, as some do in silence."""
    for _, text in logger.messages:
        if re.search(r"[Uu]nused [Ii]nput|input .* is not used|is ignored", text):
            raise PlanError(f"a part of the graph would be left out: {text.strip()}")


def _check_caches(trt: Any, network: Any, stage: "OnnxStage") -> None:
    """Refuse a network that would copy K/V caches instead of updating them in place."""
    kind = getattr(trt.LayerType, "KV_CACHE_UPDATE", None)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = sum(layer.type == kind for layer in layers)
    if found != len(stage.caches):
        raise PlanError(f"{found} of {len(stage.caches)} K/V caches are updated in place")


def _configure(trt: Any, builder: Any, settings: Settings) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = settings.aux_streams
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(
            trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * (1 << 20)
        )
    if settings.targets:
        config.num_compute_capabilities = len(settings.targets)
        for index, target in enumerate(settings.targets):
            capability = getattr(trt.ComputeCapability, target.replace("_", "").upper())
            config.set_compute_capability(capability, index)
    elif settings.timing_cache:
        path = Path(settings.timing_cache)
        blob = path.read_bytes() if path.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(blob), ignore_mismatch=False)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # Without it a context may allocate by itself, which a CUDA graph cannot hold.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _keep_timings(config: Any, settings: Settings) -> None:
    if settings.timing_cache and not settings.targets:
        Path(settings.timing_cache).write_bytes(bytes(config.get_timing_cache().serialize()))


def _set_formats(trt: Any, network: Any, stage: "OnnxStage") -> None:
    """Declare 4-D 16-bit tensors of whole groups of 8 channels channels-last, as they lie."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in tensors:
        if tensor.name in stage.channels_last:
            tensor.allowed_formats = 1 << int(trt.TensorFormat.HWC8)
        else:
            tensor.allowed_formats = 1 << int(trt.TensorFormat.LINEAR)
