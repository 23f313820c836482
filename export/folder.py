"""The folders of a build: the target, and the work folder that becomes it."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sdrt.export.disk import disk_is_full
from sdrt.export.request import BuildError, Request, build_key
from sdrt.export.variants import check_addition
from sdrt.export.work import BAKED_FOLDER, WorkFolder
from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.manifest import MANIFEST_NAME

KEY_NAME = "build.key"
"""In a work folder: what the packages in it were built from."""
CHOICES_NAME = "choices.json"
"""Beside it: the implementations that were the fastest."""


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other builds out of a folder; a build that died keeps nobody out.

    Raises:
        BuildError: another process is building it, or it cannot be written.
    """
    path = out.with_name(f"{out.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise BuildError(f"{out}: cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):
                raise BlockingIOError  # its last owner has just removed it
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except BlockingIOError:
            file.seek(0)
            owner = file.read().decode() or "that has just begun"
            raise BuildError(
                f"{out}: process {owner} is building it; wait for that, or choose another --out"
            ) from None
        except OSError as error:
            raise BuildError(f"{out}: cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            path.unlink()


def _is_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def whole_disk(out: Path) -> Iterator[None]:
    """Make one line of a full disk, and remove from the work folder what was half written.

    Raises:
        BuildError: the disk became full.
    """
    try:
        yield
    except (OSError, SdrtError) as error:
        if not disk_is_full(error):
            raise
    else:
        return
    partial = out.with_name(f"{out.name}.partial")
    for folder in ("weights", "text", BAKED_FOLDER, "onnx"):
        shutil.rmtree(partial / folder, ignore_errors=True)
    WorkFolder(partial).discard_unfinished()
    raise BuildError(
        f"{out}: the disk is full; make room and give the same command again: what is finished "
        f"lies in {partial}"
    )


def check_target(request: Request) -> None:
    """Refuse to replace an engine unasked, and anything that is no engine at all."""
    out = request.out
    if request.add:
        return check_addition(out, request.recipe.preset, request.source.specs, request.machine())
    if not out.exists():
        return
    if not (out / MANIFEST_NAME).is_file():
        raise BuildError(f"{out}: exists and is not an engine directory; choose another --out")
    if not request.force:
        raise BuildError(f"{out}: exists already; use --force to build it again")


def open_partial(request: Request) -> WorkFolder:
    """Return the work folder; all that an interrupted build left in it are finished packages."""
    partial = request.out.with_name(request.out.name + ".partial")
    work = WorkFolder(partial)
    key = build_key(request)
    key_file = partial / KEY_NAME
    try:
        if partial.exists() and any(partial.iterdir()):
            if not key_file.is_file():
                raise BuildError(f"{partial}: in the way of the build, and not made by one")
            for folder in ("weights", "text", BAKED_FOLDER):
                shutil.rmtree(partial / folder, ignore_errors=True)
            work.discard_unfinished()
            if key_file.read_text() != key:
                shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        key_file.write_text(key)
        work.packages.mkdir(exist_ok=True)
    except OSError as error:
        raise BuildError(f"{request.out}: cannot be written ({error.strerror})") from None
    return work


def clean(work: WorkFolder) -> None:
    """Remove what only an interrupted build needs."""
    (work.path / KEY_NAME).unlink()
    (work.path / CHOICES_NAME).unlink(missing_ok=True)
    work.forget_descriptions()


def install(partial: Path, out: Path) -> None:
    """Put the finished directory in place; an old one stays until the new one is complete."""
    retired = None
    if out.exists():
        retired = out.with_name(f"{out.name}.{time.time_ns()}.old")
        out.rename(retired)
    partial.rename(out)
    if retired is not None:
        shutil.rmtree(retired)
