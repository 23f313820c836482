"""Power, clocks and memory over time, read from NVML beside the measured work."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

PERIOD_S = 0.1
"""Time between samples: rare enough to cost nothing."""


class Nvml:
    """One GPU through NVML (package ``nvidia-ml-py``); what it cannot read is left out."""

    def __init__(self, device: torch.device) -> None:
        """Find the device.

        Raises:
            ImportError: the package is not installed.
            RuntimeError: NVML does not answer.
        """
        import pynvml  # pyright: ignore[reportMissingImports]

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        except pynvml.NVMLError as error:
            raise RuntimeError(f"NVML: {error}") from None

    def sample(self) -> dict[str, float]:
        """Return ``power_w``, ``sm_mhz``, ``memory_mhz``, ``celsius`` and ``memory_gib``."""
        nvml, handle = self._nvml, self._handle
        readings: dict[str, Callable[[], float]] = {
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "memory_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
        }
        return self._readable(readings)

    def limits(self) -> dict[str, float]:
        """Return ``power_limit_w``, ``max_sm_mhz`` and ``max_memory_mhz``."""
        nvml, handle = self._nvml, self._handle
        readings: dict[str, Callable[[], float]] = {
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "max_sm_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "max_memory_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
        }
        return self._readable(readings)

    def energy_j(self) -> float | None:
        """Return the energy that the GPU took since its driver was loaded; None if not counted."""
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3
        except self._nvml.NVMLError:
            return None

    def _readable(self, readings: dict[str, Callable[[], float]]) -> dict[str, float]:
        found = {}
        for name, read in readings.items():
            try:
                found[name] = float(read())
            except self._nvml.NVMLError:
                continue
        return found


class HostMemory:
    """The process's resident memory: what a CPU run has instead of a GPU's readings."""

    def sample(self) -> dict[str, float]:
        """Return ``memory_gib``; nothing where /proc is missing."""
        status = Path("/proc/self/statm")
        if not status.exists():
            return {}
        pages = int(status.read_text().split()[1])
        return {"memory_gib": pages * 4096 / 2**30}

    def limits(self) -> dict[str, float]:
        """A CPU states none."""
        return {}

    def energy_j(self) -> float | None:
        """A CPU counts none."""
        return None


def open_meter(device: torch.device) -> Nvml | HostMemory | None:
    """Return the readings of a device; None for a GPU whose NVML cannot be read."""
    if device.type != "cuda":
        return HostMemory()
    try:
        return Nvml(device)
    except (ImportError, RuntimeError):
        return None


class Sampler:
    """Takes a sample ten times a second while its ``with`` block runs."""

    def __init__(self, meter: Nvml | HostMemory | None) -> None:
        self._meter = meter
        self.samples: list[dict[str, float]] = []
        """Each with ``t_s`` since the block began."""
        self.joules: float | None = None
        """Energy over the block."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._meter is not None:
            self._start = time.perf_counter()
            self._energy = self._meter.energy_j()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None or self._meter is None:
            return
        after = self._meter.energy_j()
        if self._energy is not None and after is not None:
            self.joules = after - self._energy
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        assert self._meter is not None
        while not self._stop.wait(PERIOD_S):
            elapsed = time.perf_counter() - self._start
            sample: dict[str, Any] = self._meter.sample()
            self.samples.append(
                {"t_s": round(elapsed, 3)} | {k: round(v, 3) for k, v in sample.items()}
            )
