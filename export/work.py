"""A build's work folder: its finished packages, and what is given up with an interrupted build."""

from pathlib import Path

from sdrt.runtime.directory.contents import PackageSpec

PACKAGES_FOLDER = "packages"
"""Compiled files, in the work folder as in the engine directory."""
BAKED_FOLDER = "baked"
"""The weights that become part of compiled files."""
FINISHED = (".json", ".pt2", ".plan", ".layers.txt")
"""Endings of a finished package's files."""


class WorkFolder:
    """The packages of a build, those of an interrupted one among them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packages = path / PACKAGES_FOLDER

    def finished(self, name: str) -> PackageSpec | None:
        """Return the description of a package that is finished."""
        path = self.packages / f"{name}.json"
        return PackageSpec.model_validate_json(path.read_text()) if path.is_file() else None

    def keep(self, name: str, package: PackageSpec) -> None:
        """Count a package as finished: from now on an interrupted build keeps it."""
        (self.packages / f"{name}.json").write_text(package.model_dump_json())

    def discard_unfinished(self) -> None:
        """Remove every file of a package that was not finished."""
        finished = [path.name.removesuffix(".json") for path in self.packages.glob("*.json")]
        kept = {f"{name}{ending}" for name in finished for ending in FINISHED}
        for path in self.packages.glob("*"):
            if path.name not in kept:
                path.unlink()
        for path in (self.path / "onnx").glob("*"):
            if path.name.partition(".onnx")[0] not in finished:
                path.unlink()

    def forget_descriptions(self) -> None:
        """Remove what only an interrupted build needs."""
        for path in self.packages.glob("*.json"):
            path.unlink()
