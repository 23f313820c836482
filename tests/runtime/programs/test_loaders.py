"""Loaders: each gets its own packages, and what one refuses is one line that says what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sdrt.runtime.directory.contents import BuildSpec, DeviceSpec, PackageSpec, WeightsSpec
from sdrt.runtime.directory.manifest import Manifest, ManifestError
from sdrt.runtime.programs import loaders
from sdrt.runtime.programs.aoti import AotiLoader
from sdrt.runtime.programs.loaders import are_exclusive, keep_compiled, load_programs
from sdrt.runtime.programs.tensorrt import PlanLoader

CPU = torch.device("cpu")


def manifest(**backends: Any) -> Manifest:
    """A directory of packages without arguments, by name the backend of each."""
    values: dict[str, Any] = {
        "schema_version": 0,
        "sdrt": "",
        "preset": {"name": "tiny"},
        "device": DeviceSpec(type="cpu", name="CPU", capability=None, driver=None),
        "versions": {"torch": "1.13.1"},
        "built": "",
        "ops": (),
        "buffers": {},
        "stages": (),
        "weights": WeightsSpec(sources={}, synthetic=False, files=()),
    }
    packages = {
        name: PackageSpec.model_construct(backend=backend, file=f"packages/{name}", arguments=())
        for name, backend in backends.items()
    }
    return Manifest.model_construct(
        **values, packages=packages, builds=(BuildSpec(arguments=("--preset", "tiny")),)
    )


class Recorded:
    """A loader that notes what it is asked for; its programs are the packages' names."""

    exclusive = False

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.kept: list[object] = []

    def check(self, *_: object) -> None: ...

    def load(self, directory: Path, packages, device) -> dict[str, Any]:
        self.loaded += packages
        return {name: name for name in packages}

    def keep_compiled(self, programs) -> None:
        self.kept += programs


def test_each_loader_gets_its_packages(monkeypatch) -> None:
    one, other = Recorded(), Recorded()
    monkeypatch.setattr(loaders, "LOADERS", {"inductor": one, "tensorrt": other})
    mixed = manifest(a="inductor", b="tensorrt", c="inductor")
    programs = load_programs(Path("engine"), mixed, CPU)
    assert sorted(programs) == ["a", "b", "c"]
    assert (one.loaded, other.loaded) == (["a", "c"], ["b"])
    keep_compiled(mixed, programs)
    assert (one.kept, other.kept) == (["a", "c"], ["b"])


def test_one_exclusive_loader_is_enough() -> None:
    assert not are_exclusive(manifest(a="inductor"))
    assert are_exclusive(manifest(a="inductor", b="tensorrt-rtx"))
    assert (AotiLoader.exclusive, PlanLoader.exclusive) == (False, True)


def test_a_package_that_does_not_load(tmp_path: Path) -> None:
    """The line names the directory, the package, and the command that builds it again."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "a").write_bytes(b"no package")
    with pytest.raises(ManifestError) as refused:
        load_programs(tmp_path, manifest(a="inductor"), CPU)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}: package a does not load (") and "\n" not in message
    assert f"rebuild it: build-engines --preset tiny --out {tmp_path} --force" in message


def test_packages_of_another_torch() -> None:
    built = manifest(a="inductor")
    expected = f"built with torch 1.13.1, this is torch {torch.__version__}; rebuild it here: build"
    with pytest.raises(ManifestError) as refused:
        loaders.check_programs(Path("engine"), built, CPU)
    assert expected in str(refused.value)
