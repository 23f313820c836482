"""What to build, for which device and where, and the hash of all that a package depends on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sdrt.engine.preset.preset import Preset
from sdrt.engine.weights.source import Source
from sdrt.export.backends import backends_of
from sdrt.export.describe import describe_device, versions
from sdrt.export.quantise.material import Material
from sdrt.export.recipe import Ranges, Recipe
from sdrt.kernels.errors import SdrtError
from sdrt.kernels.library import library_path
from sdrt.runtime.directory.contents import BuildSpec, DeviceSpec


class BuildError(SdrtError):
    """An engine directory could not be built; the message says why and what to do."""


@dataclass(frozen=True)
class Request:
    """What to build, from which weights, where, and how to go about it."""

    recipe: Recipe
    source: Source
    out: Path
    device: torch.device
    """Where packages are compiled and weights converted; with targets nothing runs on it."""
    force: bool = False
    """Replace an engine directory that is there."""
    jobs: int | None = None
    """Packages compiled at once; by default as many as cores and memory allow."""
    keep_onnx: bool = False
    """Leave the ONNX files of the plans in the engine directory."""
    check_onnx: bool = False
    """Compare every plan's graph in onnxruntime with the eager module before it is built."""
    calibration: Material = Material()
    """What FP8 is calibrated on, where plans have any."""
    add: bool = False
    """Add a variant for another device to an engine directory that is there."""

    asked: BuildSpec | None = None
    """The command line that asked for it, for the command that builds it again."""

    def machine(self) -> DeviceSpec:
        """Return the device that is built for."""
        targets = self.recipe.tensorrt.targets
        if not targets or not all(backend.portable for backend in backends_of(self.recipe)):
            return describe_device(self.device)
        name = ", ".join(targets)
        return DeviceSpec(type="cuda", name=name, capability=None, driver=None, targets=targets)


def default_folder(preset: Preset, device: torch.device, targets: Sequence[str] = ()) -> str:
    """Return the name of an engine directory: ``<preset>--<gpu>-sm90--bf16``."""
    if targets:
        machine = "-".join(target.replace("_", "") for target in targets)
    elif device.type == "cpu":
        machine = "cpu"
    else:
        name = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ")
        major, minor = torch.cuda.get_device_capability(device)
        machine = f"{name.replace(' ', '-')}-sm{major}{minor}"
    return f"{preset.name}--{machine}--{preset.precision}"


def parse_ranges(text: str | None, layers: int) -> Ranges:
    """Return the block ranges of ``0:15,15:30``.

    Raises:
        BuildError: they are not consecutive or do not cover all layers.
    """
    if text is None:
        return ((0, layers),)
    rule = f"must be consecutive and cover blocks 0 to {layers}, such as 0:{layers}"
    try:
        ranges = tuple(tuple(int(end) for end in part.split(":")) for part in text.split(","))
    except ValueError:
        ranges = ()
    ends = [end for part in ranges for end in part]
    starts = [0, *(part[-1] for part in ranges)]
    fits = ends and all(len(part) == 2 and part[0] < part[1] for part in ranges)
    if not fits or ends[::2] != starts[:-1] or ends[-1] != layers:
        raise BuildError(f"--ranges {text}: {rule}")
    return tuple((first, last) for first, last in ranges)


def build_key(request: Request) -> str:
    """Return a hash of everything that a package depends on: request, versions, our sources."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("engine", "kernels", "export"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    if (library := library_path()) is not None:
        digest.update(library.read_bytes())
    facts = {
        # Packages do not depend on the ranges.
        "recipe": request.recipe.model_dump(mode="json", exclude={"ranges"}),
        "device": request.machine().model_dump(),
        "versions": versions(),
        "compilers": {
            backend.name: dict(backend.compiler_settings(request.device))
            for backend in backends_of(request.recipe)
        },
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
