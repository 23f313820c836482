"""The compiled kernels: `sdrt_kernels`, a library of plain C functions without torch in it.

Pointers, sizes and a stream are all that crosses the boundary, so one build serves every version
of torch. The functions are given to torch as ops by the modules that call them.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from sdrt.kernels.errors import SdrtError

NAME = "sdrt.runtime.sdrt_kernels"
"""Where an installation puts the library; it is found like a module, but is none."""


class KernelError(SdrtError):
    """A compiled kernel refused its launch; the message names it and CUDA's error code."""


def library_path() -> Path | None:
    """Return the library's file, or None where sdrt was installed without a CUDA compiler."""
    spec = importlib.util.find_spec(NAME)
    path = Path(spec.origin) if spec and spec.origin else None
    return path if path and path.is_file() else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, or None where there is none."""
    path = library_path()
    if path is None:
        return None
    kernels = ctypes.CDLL(str(path))
    kernels.sdrt_ring_attention_workspace.restype = ctypes.c_int64
    return kernels


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a CUDA device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return a tensor's address, null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def stream_of(tensor: Tensor) -> ctypes.c_void_p:
    """Return the current stream of a tensor's device."""
    return ctypes.c_void_p(torch.cuda.current_stream(tensor.device).cuda_stream)


def check(kernel: str, code: int) -> None:
    """Raise unless a launch went well.

    Raises:
        KernelError: ``code`` is not 0 (``cudaSuccess``).
    """
    if code:
        raise KernelError(f"{kernel}: the launch failed with CUDA error {code}")
