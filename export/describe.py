"""From a plan to a manifest: the machine, the versions, and every package's declaration."""

import datetime
import importlib.metadata
import subprocess
from collections.abc import Mapping

import torch

from sdrt.engine.preset.preset import to_dict
from sdrt.export.plan.plan import Plan
from sdrt.export.recipe import Recipe
from sdrt.export.tune.measure import op_modules
from sdrt.runtime.directory.contents import Choice, DeviceSpec, PackageSpec, TextSpec, WeightsSpec
from sdrt.runtime.directory.manifest import SCHEMA_VERSION, Manifest


def describe_device(device: torch.device) -> DeviceSpec:
    """Return what the manifest says of a device."""
    if device.type == "cpu":
        name = torch.backends.cpu.get_cpu_capability()
        return DeviceSpec(type="cpu", name=f"CPU {name}", capability=None, driver=None)
    return DeviceSpec(
        type="cuda",
        name=torch.cuda.get_device_name(device),
        capability=torch.cuda.get_device_capability(device),
        driver=_driver_version(),
    )


def sdrt_version() -> str:
    """Return the version of sdrt; ``source`` in a bare checkout, as ``sdrun`` says there."""
    try:
        return importlib.metadata.version("sdrt")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def versions() -> dict[str, str]:
    """Return the versions that an engine depends on."""
    found = {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    for package in ("triton", "tensorrt", "tensorrt_rtx", "onnx", "onnxscript"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(
    plan: Plan,
    recipe: Recipe,
    device: torch.device | DeviceSpec,
    packages: Mapping[str, PackageSpec],
    weights: WeightsSpec,
    text: TextSpec,
    choices: Mapping[str, Choice] | None = None,
) -> Manifest:
    """Return the manifest of a plan whose packages are built."""
    chosen = dict(choices or {})
    assert plan.stream is not None, "a plan without a stream cannot be run"
    return Manifest(
        schema_version=SCHEMA_VERSION,
        sdrt=sdrt_version(),
        preset=to_dict(recipe.preset),
        recipe=recipe.model_dump(mode="json"),
        device=device if isinstance(device, DeviceSpec) else describe_device(device),
        versions=versions(),
        built=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ops=op_modules(chosen),
        packages=dict(packages),
        buffers=plan.buffers,
        stages=tuple(plan.stages.values()),
        steps=plan.steps,
        conditions=plan.conditions,
        stream=plan.stream,
        weights=weights,
        text=text,
        how=chosen,
    )


def _driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.split("\n")[0].strip() or None
