"""Engine directories that cannot be used: one clear line each, by the library and by sdrun."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdrt.runtime import cli
from sdrt.runtime.directory.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    ManifestError,
    read_manifest,
)
from sdrt.runtime.programs import loaders
from sdrt.runtime.session import Session
from sdrt.runtime.video.writer import FrameWriter


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    """A copy of the tiny engine that a test may damage."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


@pytest.fixture
def refusal(tmp_path: Path, capsys) -> Callable[[Path], str]:
    """Callable: open an engine by the library and by ``sdrun``; return the one line of both."""
    import numpy as np

    clip = tmp_path / "clip.mp4"
    with FrameWriter(clip, 64, 32, 16) as writer:
        writer.write(np.zeros((9, 32, 64, 3), np.uint8))

    def check(engine: Path) -> str:
        with pytest.raises(ManifestError) as caught:
            Session.open(engine)
        message = str(caught.value)
        assert "\n" not in message
        folder = tmp_path / "out"
        folder.mkdir()
        arguments = ["--engine", str(engine), "--input", str(clip), "--prompt", "p"]
        arguments += ["--output", str(folder / "out.mp4"), "--stats", str(folder / "out.json")]
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
        assert list(folder.iterdir()) == []
        return message

    return check


def edit(engine: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest's JSON."""
    path = engine / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip(path: Path, offset: int) -> None:
    """Change one byte; the size stays."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_the_copy_itself_is_fine(engine: Path) -> None:
    """An engine may be moved; what the other tests see is their own damage."""
    with Session.open(engine) as session:
        assert session.manifest.preset["name"] == "tiny"


# Another machine


def test_built_for_a_gpu(engine: Path, refusal) -> None:
    """On a machine without one; on a GPU machine the name differs instead."""

    def change(data: dict) -> None:
        data["device"] = {
            "type": "cuda",
            "name": "NVIDIA H999",
            "capability": [99, 0],
            "driver": "1.0",
        }

    edit(engine, change)
    message = refusal(engine)
    assert "built for NVIDIA H999" in message
    if not torch.cuda.is_available():
        assert "no CUDA device is here" in message


def test_built_for_another_gpu(engine: Path, refusal, monkeypatch) -> None:
    """Both names and capabilities are shown, and how to build it again."""
    device = {"type": "cuda", "name": "NVIDIA A100", "capability": [8, 0], "driver": "1.0"}
    edit(engine, lambda data: data.update(device=device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    message = refusal(engine)
    assert "NVIDIA A100 (capability (8, 0))" in message
    assert "this is NVIDIA H200 (capability (9, 0))" in message
    assert f"build-engines --preset tiny --device cpu --out {engine} --force" in message


def test_built_for_another_kind_of_cpu(engine: Path, refusal) -> None:
    """Packages hold this machine's vector instructions: on another they would crash."""
    edit(engine, lambda data: data["device"].update(name="CPU AVX1024"))
    message = refusal(engine)
    assert "built for CPU AVX1024" in message
    assert f"this is CPU {torch.backends.cpu.get_cpu_capability()}" in message


def test_asked_for_another_device(tiny_engine: Path) -> None:
    expected = r"built for cpu \(CPU .*\), not for cuda; rebuild it here: .* --device cuda --out"
    with pytest.raises(ManifestError, match=expected):
        Session.open(tiny_engine, "cuda")
    with pytest.raises(ManifestError, match="device 'gpu': no such device; use cuda"):
        Session.open(tiny_engine, "gpu")


def test_another_torch(engine: Path, refusal) -> None:
    edit(engine, lambda data: data["versions"].update(torch="1.13.1"))
    message = refusal(engine)
    assert f"built with torch 1.13.1, this is torch {torch.__version__}" in message
    assert f"build-engines --preset tiny --device cpu --out {engine} --force" in message


@pytest.mark.parametrize("found", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, "1", None])
def test_another_schema(engine: Path, refusal, found) -> None:
    edit(engine, lambda data: data.update(schema_version=found))
    message = refusal(engine)
    assert f"schema version {found}, this sdrt reads {SCHEMA_VERSION}" in message


# Damage


def package_file(engine: Path) -> Path:
    return engine / read_manifest(engine).packages["dit_block.steady"].file


def weights_file(engine: Path) -> Path:
    return engine / read_manifest(engine).weights.files[0].file


FILES = pytest.mark.parametrize("find", [package_file, weights_file], ids=["package", "weights"])


@FILES
def test_a_truncated_file(engine: Path, refusal, find) -> None:
    path = find(engine)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    message = refusal(engine)
    assert f"{path}: {len(data) - 100} bytes, expected {len(data)}; rebuild" in message


@FILES
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_changed_file_of_the_same_size(engine: Path, refusal, find, place: str) -> None:
    """Whatever part was changed, and before any of its code has run."""
    path = find(engine)
    size = path.stat().st_size
    flip(path, {"start": 9, "middle": size // 2, "end": size - 9}[place])
    message = refusal(engine)
    assert f"{path}: SHA-256 " in message and "was changed or damaged; rebuild" in message


def test_a_changed_package_is_not_loaded(engine: Path, monkeypatch) -> None:
    """Loading runs code: the hashes of packages are checked first."""
    from sdrt.runtime import engine as engine_module

    flip(package_file(engine), 5000)
    monkeypatch.setattr(engine_module, "load_programs", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ManifestError, match="SHA-256"):
        Session.open(engine)


@FILES
def test_a_missing_file(engine: Path, refusal, find) -> None:
    path = find(engine)
    path.unlink()
    assert f"{path}: missing; rebuild" in refusal(engine)


def test_no_manifest(engine: Path, refusal) -> None:
    (engine / MANIFEST_NAME).unlink()
    assert "not an engine directory (no manifest.json)" in refusal(engine)


def test_no_directory(tmp_path: Path, refusal) -> None:
    assert "no such engine directory; build one with build-engines" in refusal(tmp_path / "none")


SCHEMA_ONLY = json.dumps({"schema_version": SCHEMA_VERSION})


@pytest.mark.parametrize("text", ["", "{", "[]", SCHEMA_ONLY, "\x80abc"])
def test_a_malformed_manifest(engine: Path, refusal, text: str) -> None:
    (engine / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    message = refusal(engine)
    assert message.startswith(f"{engine / MANIFEST_NAME}: ") and "rebuild" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("stages"),
        lambda data: data["versions"].pop("torch"),
        lambda data: data["packages"].pop("dit_block.steady"),
        lambda data: data["buffers"].pop("frame"),
        lambda data: data["stages"][0]["calls"][0]["inputs"].pop(),
        lambda data: data["stages"][0]["calls"][0]["weights"].__setitem__(0, "nothing"),
        lambda data: data.update(extra=1),
    ],
    ids=["stages", "torch", "package", "buffer", "argument", "weight", "extra"],
)
def test_a_manifest_that_contradicts_itself(engine: Path, refusal, change) -> None:
    edit(engine, change)
    assert "rebuild" in refusal(engine)


def test_sdrun_itself_is_refused_with_exit_code_2(engine: Path, tmp_path: Path) -> None:
    """As a process: one line, no traceback."""
    edit(engine, lambda data: data["versions"].update(torch="1.13.1"))
    images = tmp_path / "images"
    images.mkdir()
    from PIL import Image

    Image.new("RGB", (32, 32)).save(images / "0.png")
    command = [sys.executable, "-m", "sdrt.runtime.cli", "--engine", str(engine), "--prompt", "p"]
    command += ["--input", str(images), "--output", str(tmp_path / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


def test_packages_that_call_kernels_that_are_not_installed(engine: Path, refusal, monkeypatch):
    """The packages would fail at their first launch, with torch's words for a missing op."""
    monkeypatch.setattr(loaders, "library", lambda: None)
    edit(engine, lambda data: data.update(ops=["sdrt.kernels.causal_conv"]))
    message = refusal(engine)
    assert "compiled kernels, which are not here" in message and "nvcc" in message
    assert "build-engines --preset tiny" in message
