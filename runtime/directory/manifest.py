"""The manifest of an engine directory: what was built, from what, and for which machine."""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sdrt.kernels.errors import SdrtError

SCHEMA_VERSION = 3
MANIFEST_NAME = "manifest.json"

RTX_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""What plans of tensorrt_rtx are built for and run on; not sm_90 or sm_100."""

Phase = Literal["first", "filling", "steady", "any"]
Backend = Literal["inductor", "tensorrt", "tensorrt-rtx"]
BufferKind = Literal["io", "state", "prompt"]
Group = Literal["prompt", "encode", "diffuse", "decode", "finalize"]


class ManifestError(SdrtError):
    """An engine directory cannot be used here; the message says why and what to do."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Model):
    """Shape, dtype name (``bfloat16``) and strides of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]


class BufferSpec(TensorSpec):
    """A tensor that the session allocates once, as zeros, at a fixed address."""

    kind: BufferKind
    """``state`` is cleared when a stream starts, ``prompt`` lives as long as the prompt."""


class Fp8Spec(_Model):
    """Linears of a DiT range that run in FP8, and what that costs."""

    groups: tuple[str, ...]
    gemms: int
    """Matrix products with both operands in FP8, by the builder's log."""
    largest: dict[str, float]
    """Weight -> largest input of its linear in calibration; the input's scale is a 448th."""
    range_error: float
    """Relative error of the range's result, given the same input."""
    latent_error: float
    """Relative error of the latents after calibration, all ranges together."""


class EngineSpec(_Model):
    """What a TensorRT plan was built with and how its tensors meet the arguments."""

    library: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    version: str
    targets: tuple[str, ...]
    """Architectures, such as ``sm_89``, that a plan of ``tensorrt_rtx`` runs on."""
    precision: str
    graph_sha256: str
    """Of the ONNX graph without its weights."""
    weights_sha256: str
    """Of the weights in the plan."""
    flags: dict[str, int | str]
    """Builder settings."""
    addresses: tuple[tuple[str, int], ...]
    """Tensor of the plan, index of the argument at whose address it lies."""
    banks: tuple[tuple[str, int], ...]
    """Output that is a state's new value, and the state's argument: it is copied there."""
    activation_bytes: int
    fused_attentions: int
    fp8: Fp8Spec | None = None
    onnx_error: float | None = None
    """Relative, of the graph in onnxruntime against the eager module; None: not checked."""


class PackageSpec(_Model):
    """One compiled callable: every tensor it touches is an argument, results included."""

    backend: Backend
    file: str
    sha256: str
    bytes: int
    build_s: float
    arguments: tuple[TensorSpec, ...]
    engine: EngineSpec | None = None
    """Of a TensorRT plan."""


class Call(_Model):
    """One run of a package.

    An argument names a buffer, rows of a buffer (``ring[0:6]``) or a weight (``w:name``); it is
    viewed in the shape that the package declares.
    """

    package: str
    arguments: tuple[str, ...]


class StageSpec(_Model):
    """A list of calls that is captured and replayed as one CUDA graph."""

    name: str
    group: Group
    phase: Phase
    calls: tuple[Call, ...]


class FileSpec(_Model):
    """A file of the engine directory, relative to it."""

    file: str
    sha256: str
    bytes: int


class DeviceSpec(_Model):
    """The device that the packages were compiled for."""

    targets: tuple[str, ...] = ()
    """With plans of ``tensorrt_rtx`` only: the architectures, such as ``sm_89``, they run on."""

    type: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] | None
    driver: str | None


class WeightsSpec(_Model):
    """Where the weights came from."""

    sources: dict[str, str]
    """Component (``dit``, ``vae``, …) -> what its weights came from."""
    synthetic: bool
    """Whether any of them are noise."""
    files: tuple[FileSpec, ...]


class TextSpec(_Model):
    """How a prompt becomes embeddings ``[1, text_len, text_dim]``."""

    kind: Literal["umt5", "hashed-words"]
    files: tuple[FileSpec, ...] = ()


class BuildSpec(_Model):
    """One ``build-engines`` that made an engine directory or added to it, as it was asked for."""

    arguments: tuple[str, ...]
    """All but those that follow, and those that say where to build and whether to replace."""
    device: str | None = None
    """``--device``, where it was given."""
    target: str | None = None
    """``--target``, where it was given."""
    rtx: bool = False
    """Whether it makes plans of tensorrt_rtx, which can be had for more cards."""

    def command(self, directory: Path, *flags: str) -> str:
        """Return the command that builds the same in ``directory``."""
        device = ("--device", self.device) if self.device else ()
        target = ("--target", self.target) if self.target else ()
        out = ("--out", str(directory), *flags)
        return shlex.join(["build-engines", *self.arguments, *device, *target, *out])


class Choice(_Model):
    """Which implementation an op got, by measurement on the device that was built for."""

    chosen: str
    ms: dict[str, float]
    """Every candidate's time; empty where there was only one."""


class Variant(_Model):
    """What an engine directory holds for another device: all that differs between devices."""

    device: DeviceSpec
    versions: dict[str, str]
    built: str
    packages: dict[str, PackageSpec]
    buffers: dict[str, BufferSpec]
    stages: tuple[StageSpec, ...]
    weights: WeightsSpec
    ops: tuple[str, ...] = ()
    choices: dict[str, Choice] = {}


class Manifest(_Model):
    """Everything the runtime knows of an engine directory."""

    schema_version: int
    sdrt: str
    preset: dict[str, Any]
    device: DeviceSpec
    versions: dict[str, str]
    built: str
    """UTC time of the build, ISO 8601."""
    ops: tuple[str, ...]
    """Modules to import before loading: they register the custom ops that packages call."""
    packages: dict[str, PackageSpec]
    buffers: dict[str, BufferSpec]
    stages: tuple[StageSpec, ...]
    weights: WeightsSpec
    text: TextSpec
    choices: dict[str, Choice] = {}
    """Op and shape, such as ``attention.ring.steady`` -> the implementation that it got."""
    others: tuple[Variant, ...] = ()
    """The same for other devices (a mixed directory)."""
    builds: tuple[BuildSpec, ...] = ()
    """The ``build-engines`` that made the directory, and those that added to it."""

    @property
    def known_builds(self) -> tuple[BuildSpec, ...]:
        """``builds``; of a directory that another program made, what its preset is called."""
        weights = ("--weights", "synthetic") if self.weights.synthetic else ()
        arguments = ("--preset", self.preset.get("name", "NAME"), *weights)
        return self.builds or (BuildSpec(arguments=arguments),)

    def variants(self) -> "tuple[Manifest, ...]":
        """Return one manifest a device that the directory was built for."""
        own = {**dict(self), "others": ()}
        return Manifest(**own), *(Manifest(**own | dict(other)) for other in self.others)

    @model_validator(mode="after")
    def _check_calls(self) -> Self:
        """Refuse calls of packages, and names of buffers, that the manifest does not declare."""
        for stage in self.stages:
            for call in stage.calls:
                package = self.packages.get(call.package)
                if package is None or len(package.arguments) != len(call.arguments):
                    raise ValueError(f"stage {stage.name} does not fit package {call.package}")
                for argument in call.arguments:
                    weight = argument.startswith("w:")
                    if not weight and split_rows(argument)[0] not in self.buffers:
                        raise ValueError(f"stage {stage.name} names no buffer: {argument}")
        return self

    def rebuild_command(self, directory: Path, device: str | None = None) -> str:
        """Return the command that makes ``directory`` again, with all that was added to it.

        Args:
            device: build for this one instead, whatever was asked for.
        """
        change = {} if device is None else {"device": device}
        first, *more = (build.model_copy(update=change) for build in self.known_builds)
        commands = [first.command(directory, "--force")]
        commands += [build.command(directory, "--add") for build in more]
        return " && ".join(commands)

    def add_command(self, directory: Path, target: str) -> str:
        """Return the command that adds plans of tensorrt_rtx for another card."""
        builds = self.known_builds
        plans = [build for build in builds if build.rtx]
        if not plans:
            arguments = (*builds[0].arguments, "--backend", "tensorrt-rtx")
            plans = [BuildSpec(arguments=arguments, rtx=True)]
        return plans[-1].model_copy(update={"target": target}).command(directory, "--add")


def split_rows(argument: str) -> tuple[str, int | None, int | None]:
    """Split ``name[a:b]`` into its parts; ``a`` and ``b`` are None for a whole buffer."""
    if not argument.endswith("]"):
        return argument, None, None
    name, _, rows = argument[:-1].partition("[")
    first, _, last = rows.partition(":")
    return name, int(first), int(last)


def read_manifest(directory: Path) -> Manifest:
    """Read and validate ``directory/manifest.json``.

    Raises:
        ManifestError: it is missing, unreadable, of another schema, or malformed.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise ManifestError(f"{directory}: no such engine directory; build one with build-engines")
    if not path.is_file():
        raise ManifestError(
            f"{directory}: not an engine directory (no {MANIFEST_NAME}); "
            "build one with build-engines --out"
        )
    try:
        data = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not valid JSON ({error}); rebuild the engine") from None
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: schema version {found}, this sdrt reads {SCHEMA_VERSION}; "
            "rebuild the engine with build-engines --force"
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestError(
            f"{path}: {where}: {first['msg']}; rebuild the engine with build-engines --force"
        ) from None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``directory/manifest.json``."""
    (directory / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(directory: Path, name: str) -> FileSpec:
    """Return size and hash of ``directory/name``."""
    path = directory / name
    return FileSpec(file=name, sha256=file_sha256(path), bytes=path.stat().st_size)
