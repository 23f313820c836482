"""The manifest of an engine directory: what was built, from what, and for which machine."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

Phase = Literal["first", "filling", "steady", "any"]
Group = Literal["prompt", "encode", "diffuse", "decode", "finalize"]


class ManifestError(ValueError):
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

    kind: Literal["io", "state", "prompt"]
    """``state`` is cleared when a stream starts, ``prompt`` lives as long as the prompt."""


class PackageSpec(_Model):
    """One compiled callable: every tensor it touches is an argument, results included."""

    backend: Literal["inductor"]
    file: str
    sha256: str
    bytes: int
    build_s: float
    arguments: tuple[TensorSpec, ...]


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

    type: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] | None
    driver: str | None


class WeightsSpec(_Model):
    """Where the weights came from."""

    source: str
    synthetic: bool
    files: tuple[FileSpec, ...]


class TextSpec(_Model):
    """How a prompt becomes embeddings ``[1, text_len, text_dim]``."""

    kind: Literal["umt5", "hashed-words"]
    files: tuple[FileSpec, ...] = ()


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

    def rebuild_command(self) -> str:
        """Return the command that makes this engine directory again on this machine."""
        return f"build-engines --preset {self.preset['name']} --force"


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
