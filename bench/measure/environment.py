"""What a result has to say about where it was measured; no secrets, paths or host names."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from sdrt.bench.measure.sampler import open_meter

PACKAGES = ("triton", "tensorrt", "numpy", "nvidia-ml-py")
COMMIT_VARIABLE = "SDRT_COMMIT"
"""Names the commit where the sources lie outside a repository."""


def capture(device: torch.device) -> dict[str, Any]:
    """Return device, clocks, power, driver, library versions and the commit."""
    found: dict[str, Any] = {
        "os": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }
    if device.type != "cuda":
        return found | {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    meter = open_meter(device)
    return found | {
        "device": properties.name,
        "capability": list(torch.cuda.get_device_capability(device)),
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
        "limits": meter.limits() if meter else {},
        "at_start": meter.sample() if meter else {},
    }


def device_slug(environment: dict[str, Any]) -> str:
    """Return a device's name for file names: ``h200``, ``cpu``."""
    name = environment["device"].lower().removeprefix("nvidia ")
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """Return the sources' commit, with ``+`` behind it where files differ from it."""
    if given := os.environ.get(COMMIT_VARIABLE):
        return given
    folder = Path(__file__).resolve().parent
    commit = _output(["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"])
    if commit is None:
        return None
    changed = _output(["git", "-C", str(folder), "status", "--porcelain", "-uno"])
    return commit + ("+" if changed else "")


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    text = _output(command)
    return text.splitlines()[0].strip() if text else None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
