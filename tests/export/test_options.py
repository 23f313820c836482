"""The options of build-engines, and the arguments that ask for the same again."""

import shlex
from pathlib import Path

import pytest

from sdrt.engine.preset.preset import PRESETS
from sdrt.export import cli
from sdrt.export.options import Options


@pytest.fixture
def ask(monkeypatch, invoke):
    """Callable: the options that the command line makes of some arguments."""
    seen: list[Options] = []
    monkeypatch.setattr(cli, "_build", lambda preset, options: seen.append(options))

    def run(*arguments: str) -> Options:
        result = invoke(cli.main, *arguments)
        assert result.exit_code == 0, result.output
        return seen.pop()

    return run


@pytest.mark.parametrize(
    "arguments, expected, device, target",
    [
        ("", "--preset tiny", None, None),
        ("--jobs 3 --force --explain --add --out x --device cpu", "--preset tiny", "cpu", None),
        (
            "--ranges 0:8 --stage-backend dit=inductor --set stream.height=256 "
            "--set precision=bf16",
            "--preset tiny --set stream.height=256 --set precision=bf16 --ranges 0:8 "
            "--stage-backend dit=inductor",
            *(None, None),
        ),
        (
            "--target sm_89 --backend tensorrt-rtx --fp8 all --check-onnx --keep-onnx "
            "--aux-streams 2 --optimization-level 0 --workspace-mib 8 --weights synthetic",
            "--preset tiny --weights synthetic --backend tensorrt-rtx --optimization-level 0 "
            "--aux-streams 2 --workspace-mib 8 --fp8 all --calibration-steps 4 "
            "--keep-onnx --check-onnx",
            *(None, "sm_89"),
        ),
    ],
)
def test_what_was_asked(ask, arguments: str, expected: str, device, target):
    """Defaults are left out, and so is what says where and how but not what."""
    asked = ask(*arguments.split()).asked()
    assert " ".join(asked.arguments) == expected
    assert (asked.device, asked.target) == (device, target)
    program, *again = shlex.split(asked.command(Path("an engine"), "--force"))
    options = ask(*again)
    assert program == "build-engines" and options.asked() == asked
    assert options.out == Path("an engine") and options.force


def test_paths_hold_in_any_folder(ask, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset = Path("mine.yaml")
    preset.write_text((PRESETS / "tiny.yaml").read_text())
    for name in ("weights", "dit.pt", "default"):
        Path(name).mkdir()
    options = ask("--preset", "mine.yaml", "--weights", "weights", "--component", "dit=dit.pt")
    assert options.asked().arguments == (
        *("--preset", str(tmp_path / "mine.yaml"), "--weights", str(tmp_path / "weights")),
        *("--component", f"dit={tmp_path / 'dit.pt'}"),
    )
    words = ask("--weights", "default", "--component", "vae=some/repository").asked().arguments
    assert words[2:] == ("--weights", "default", "--component", "vae=some/repository")
    clip = ask("--calibration-clip", "clip.mp4", "--timing-cache", "t.bin").asked().arguments
    assert str(tmp_path / "clip.mp4") in clip and str(tmp_path / "t.bin") in clip
