"""The manifest of an engine directory: what was built, from what, and for which machine."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.contents import (
    BuildSpec,
    Choice,
    DeviceSpec,
    FileSpec,
    PackageSpec,
    TextSpec,
    WeightsSpec,
)
from sdrt.runtime.directory.specs import (
    BufferSpec,
    Condition,
    Model,
    Op,
    Ref,
    Replay,
    StageSpec,
    StepSpec,
    StreamSpec,
    all_ops,
    op_refs,
)

SCHEMA_VERSION = 3

MANIFEST_NAME = "manifest.json"


class ManifestError(SdrtError):
    """An engine directory cannot be used here; the message says why and what to do."""


class MachineError(ManifestError):
    """An engine directory was built for another machine."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(f"{directory}: {reason}")
        self.reason = reason
        """The message without the directory."""


class Variant(Model):
    """What an engine directory holds for one kind of device: all that differs between devices."""

    device: DeviceSpec
    versions: dict[str, str]
    built: str
    """UTC time of the build, ISO 8601."""
    ops: tuple[str, ...] = ()
    """Modules to import before loading: they register the custom ops that packages call."""
    packages: dict[str, PackageSpec]
    buffers: dict[str, BufferSpec]
    stages: tuple[StageSpec, ...]
    steps: tuple[StepSpec, ...]
    """The AR step, by phase, in the order of ``starts_at``; the first starts at 0."""
    conditions: tuple[Condition, ...]
    weights: WeightsSpec
    how: dict[str, Choice] = {}
    """Place, such as ``dit.attention.ring.steady`` -> the implementation that it got."""


class Manifest(Variant):
    """Everything the runtime knows of an engine directory."""

    schema_version: int
    sdrt: str
    recipe: dict[str, Any] = {}
    """What the builder planned from; the runtime does not read it."""
    preset: dict[str, Any]
    """As resolved: where the engine comes from, for people and for comparisons. The runtime runs
    by ``stream``, ``steps`` and ``stages``."""
    stream: StreamSpec
    text: TextSpec
    others: tuple[Variant, ...] = ()
    """What it holds for other devices (a mixed directory)."""
    builds: tuple[BuildSpec, ...] = ()
    """The ``build-engines`` that made the directory, and those that added to it."""

    @property
    def name(self) -> str:
        """The preset's name."""
        return self.preset["name"]

    @property
    def known_builds(self) -> tuple[BuildSpec, ...]:
        """``builds``; of a directory that another program made, what its preset is called."""
        weights = ("--weights", "synthetic") if self.weights.synthetic else ()
        return self.builds or (BuildSpec(arguments=("--preset", self.name, *weights)),)

    def variants(self) -> "tuple[Manifest, ...]":
        """Return one manifest a device that the directory was built for."""
        own = {**dict(self), "others": ()}
        return Manifest(**own), *(Manifest(**own | dict(other)) for other in self.others)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Refuse what names packages, buffers or stages that the manifest does not declare."""
        for stage in self.stages:
            for call in stage.calls:
                package = self.packages.get(call.package)
                if package is None or len(package.arguments) != len(call.arguments):
                    raise ValueError(f"stage {stage.name} does not fit package {call.package}")
                self._check_refs(f"stage {stage.name}", call.arguments)
            self._check_refs(f"stage {stage.name}", (stage.makes,))
        known = {stage.name for stage in self.stages}
        for place, refs, ops in self._programs():
            self._check_refs(place, refs)
            for op in ops:
                if isinstance(op, Replay) and op.stage not in known:
                    raise ValueError(f"{place} replays no stage: {op.stage}")
                self._check_refs(place, op_refs(op))
        starts = [step.starts_at for step in self.steps]
        if starts[:1] != [0] or starts != sorted(set(starts)):
            raise ValueError(f"AR steps start at {starts}, expected 0 and ever later ones")
        return self

    def _programs(self) -> Iterator[tuple[str, tuple[Ref | None, ...], tuple[Op, ...]]]:
        """Yield every list of ops, with where it is and what else is named there."""
        for condition in self.conditions:
            yield f"condition {condition.name}", (condition.input,), condition.ops
        for step in self.steps:
            for track in step.tracks:
                place = f"track {track.name} of phase {step.phase}"
                yield place, (track.takes, track.gives), tuple(all_ops(track))

    def _check_refs(self, place: str, refs: Iterable[Ref | None]) -> None:
        for ref in refs:
            if ref is None or ref.kind == "weight":
                continue
            spec = self.buffers.get(ref.name)
            if spec is None:
                raise ValueError(f"{place} names no buffer: {ref}")
            if ref.rows and not 0 <= ref.rows[0] < ref.rows[1] <= spec.shape[0]:
                raise ValueError(f"{place} names rows of {spec.shape[0]} that are not there: {ref}")

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
    text = manifest.model_dump_json(indent=1, exclude_defaults=True)
    (directory / MANIFEST_NAME).write_text(text + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(directory: Path, name: str) -> FileSpec:
    """Return size and hash of ``directory/name``."""
    path = directory / name
    return FileSpec(file=name, sha256=file_sha256(path), bytes=path.stat().st_size)
