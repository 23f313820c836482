"""The Inductor backend: one planned package to one AOTInductor file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdrt.export.disk import DiskFullError, disk_is_full
from sdrt.export.errors import PackageError
from sdrt.export.plan.examples import example_arguments
from sdrt.export.plan.plan import PlannedPackage


class CompileError(PackageError):
    """A package could not be compiled; the message names it."""


def options(device: torch.device) -> dict[str, object]:
    """Return the Inductor settings of a device; they are part of what a package is built from."""
    chosen: dict[str, object] = {"aot_inductor.package_constants_in_so": False}
    if device.type == "cuda":
        return chosen | {"coordinate_descent_tuning": True}
    if torch.__version__ < "2.12":
        # With its layout pass, 2.11 miscompiles a state that is overwritten where it is read.
        chosen["layout_optimization"] = False
    return chosen


def compile_package(planned: PlannedPackage, path: Path, device: torch.device) -> None:
    """Export and compile one package to ``path`` (a ``.pt2`` file).

    Raises:
        CompileError: tracing or compiling failed.
        DiskFullError: what the compiler writes does not fit.
    """
    from torch._inductor import aoti_compile_and_package

    arguments = example_arguments(planned.arguments, device)
    try:
        with torch.no_grad(), _attention(device), _convolution_formats(device):
            program = torch.export.export(planned.module, arguments, strict=False)
            aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options(device)
            )
    except Exception as error:  # the compiler's errors have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if disk_is_full(error):
            raise DiskFullError(reason) from error
        if _is_compilers(error):
            reason += "; set CXX to a working C++ compiler, such as CXX=/usr/bin/g++"
        raise CompileError(reason) from error


def _is_compilers(error: BaseException | None) -> bool:
    """Return whether an error is the C++ compiler's, or was caused by one of these."""
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    while error is not None:
        if isinstance(error, (CppCompileError, InvalidCxxCompiler)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _attention(device: torch.device) -> Iterator[None]:
    """Fix the attention kernels: Inductor chooses among them when it compiles.

    cuDNN's is the fastest on Hopper (399 against 719 us for 2x12 heads, 1560x9360); shapes that
    it does not take (a mask, one wide head) fall to the next.
    """
    if device.type != "cuda":
        yield
        return
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
        yield


@contextlib.contextmanager
def _convolution_formats(device: torch.device) -> Iterator[None]:
    """Give traced convolutions on CUDA the memory format that cuDNN will return.

    While exporting, torch 2.11 does not pick cuDNN for a traced convolution, and so takes its
    result for contiguous where it comes out channels-last. A package compiled from that belief
    reads such results in the wrong order as soon as a custom op consumes them.
    """
    if device.type != "cuda":
        yield
        return
    original = torch._C._conv_determine_backend_memory_format

    def chosen(x: Tensor, weight: Tensor, backend: "torch._C.ConvBackend") -> torch.memory_format:
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
        if layout and (
            x.is_contiguous(memory_format=layout) or weight.is_contiguous(memory_format=layout)
        ):
            return layout
        return original(x, weight, backend)

    torch._C._conv_determine_backend_memory_format = chosen
    try:
        yield
    finally:
        torch._C._conv_determine_backend_memory_format = original
