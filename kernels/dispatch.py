"""Which implementation an op runs: its kernel on CUDA, its plain reference everywhere else."""

import contextlib
import importlib.util
from collections.abc import Iterator

import torch
from torch import Tensor

from sdrt.kernels.library import library

_triton = importlib.util.find_spec("triton")
HAS_TRITON = _triton is not None and _triton.origin is not None
"""Whether Triton is installed; a folder of that name on the path is not it."""

_reference_only = False


def use_kernel(tensor: Tensor) -> bool:
    """Return whether an op on ``tensor`` runs its kernel.

    Decided while tracing: a package holds either the kernel or the reference's compiled form.
    """
    return tensor.is_cuda and HAS_TRITON and not _reference_only


def use_hopper(tensor: Tensor) -> bool:
    """Return whether an op on ``tensor`` can run its compiled kernel for Hopper, in bf16."""
    return (
        tensor.is_cuda
        and tensor.dtype == torch.bfloat16
        and not _reference_only
        and library() is not None
        and torch.cuda.get_device_capability(tensor.device) == (9, 0)
    )


def uses_references() -> bool:
    """Return whether every op runs its plain reference now."""
    return _reference_only


@contextlib.contextmanager
def references() -> Iterator[None]:
    """Run every op's plain reference inside this context, on any device (for comparisons)."""
    global _reference_only
    before, _reference_only = _reference_only, True
    try:
        yield
    finally:
        _reference_only = before
