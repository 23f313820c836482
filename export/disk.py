"""A full disk: found by the operating system's number for it, wherever it was met."""

import errno
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sdrt.kernels.errors import SdrtError

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(SdrtError):
    """A file could not be written for want of room."""


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an error is a full disk, or was caused by one."""
    while error is not None:
        if isinstance(error, DiskFullError):
            return True
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the file system is full; half a file may be left.
        SafetensorError: it cannot be written for another reason.
    """
    try:
        save_file(tensors, path)
    except SafetensorError:
        # It gives its reason as text only, so the file system is asked for room by itself.
        with path.open("ab") as file:
            size = sum(tensor.nbytes for tensor in tensors.values())
            os.posix_fallocate(file.fileno(), 0, size)
        raise
