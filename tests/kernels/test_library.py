"""The compiled library: found where an installation puts it, never needed on a CPU."""

import ctypes
from importlib.machinery import ModuleSpec

import pytest
import torch

from sdrt.kernels import library as module
from sdrt.kernels.dispatch import use_hopper
from sdrt.kernels.library import KernelError, address, check, library_path


def test_no_library_is_no_error(monkeypatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert library_path() is None


def test_the_library_is_where_the_installation_put_it(monkeypatch, tmp_path) -> None:
    path = tmp_path / "sdrt_kernels.so"
    spec = ModuleSpec("sdrt_kernels", None, origin=str(path))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    assert library_path() is None
    path.write_bytes(b"")
    assert library_path() == path


def test_addresses_and_codes() -> None:
    """Null stands for no tensor; a code other than success names the kernel."""
    tensor = torch.zeros(3)
    assert address(None).value is None
    assert address(tensor).value == tensor.data_ptr()
    assert isinstance(address(tensor), ctypes.c_void_p)
    check("causal_conv", 0)
    with pytest.raises(KernelError, match="causal_conv: the launch failed with CUDA error 1"):
        check("causal_conv", 1)


def test_a_cpu_never_runs_a_compiled_kernel() -> None:
    assert not use_hopper(torch.zeros(1, dtype=torch.bfloat16))
