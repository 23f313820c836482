"""The folders of a build: the target, and the work folder that becomes it."""

import shutil
import time
from pathlib import Path

from sdrt.export.mixed import check_addition
from sdrt.export.request import BuildError, Request, build_key
from sdrt.runtime.manifest import MANIFEST_NAME

KEY_NAME = "build.key"
"""In a work folder: what the packages in it were built from."""
CHOICES_NAME = "choices.json"
"""Beside it: the implementations that were the fastest."""
BAKED_FOLDER = "baked"
"""In a work folder: the weights that become part of plans."""


def check_target(request: Request) -> None:
    """Refuse to replace an engine unasked, and anything that is no engine at all."""
    out = request.out
    if request.add:
        return check_addition(out, request.preset, request.source.description, request.machine())
    if not out.exists():
        return
    if not (out / MANIFEST_NAME).is_file():
        raise BuildError(f"{out}: exists and is not an engine directory; choose another --out")
    if not request.force:
        raise BuildError(f"{out}: exists already; use --force to build it again")


def open_partial(request: Request) -> Path:
    """Return the work folder; all that an interrupted build left in it are finished packages."""
    partial = request.out.with_name(request.out.name + ".partial")
    key = build_key(request)
    key_file = partial / KEY_NAME
    try:
        if partial.exists() and any(partial.iterdir()):
            if not key_file.is_file():
                raise BuildError(f"{partial}: in the way of the build, and not made by one")
            for folder in ("weights", "text", BAKED_FOLDER):
                shutil.rmtree(partial / folder, ignore_errors=True)
            for path in (partial / "stages").glob("*.tmp.pt2"):
                path.unlink()
            if key_file.read_text() != key:
                shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        key_file.write_text(key)
        (partial / "stages").mkdir(exist_ok=True)
    except OSError as error:
        raise BuildError(f"{request.out}: cannot be written ({error.strerror})") from None
    return partial


def clean(partial: Path) -> None:
    """Remove what only an interrupted build needs."""
    (partial / KEY_NAME).unlink()
    (partial / CHOICES_NAME).unlink(missing_ok=True)
    for path in (partial / "stages").glob("*.json"):
        path.unlink()


def install(partial: Path, out: Path) -> None:
    """Put the finished directory in place; an old one stays until the new one is complete."""
    retired = None
    if out.exists():
        retired = out.with_name(f"{out.name}.{time.time_ns()}.old")
        out.rename(retired)
    partial.rename(out)
    if retired is not None:
        shutil.rmtree(retired)
