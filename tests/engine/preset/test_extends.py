"""Presets that extend others: merged, in chains, refused with the file that is wrong."""

from pathlib import Path

import pytest
import yaml

from sdrt.engine.preset import preset as config
from sdrt.engine.preset.preset import PRESETS, ConfigError, load


@pytest.fixture
def write(tmp_path: Path):
    """Callable: write a YAML file ``NAME.yaml``; return its path."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return make


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return caught.value.problems


def test_sections_are_merged_and_lists_replaced(write):
    """Reference: the same changes as overrides."""
    path = write(
        "mine",
        "extends: sdv2-1.3b-480p\nname: mine\n"
        "stream: {height: 320}\nschedule: {steps: [700]}\nweights: {base: null}",
    )
    changes = ["name=mine", "stream.height=320", "schedule.steps=[700]", "weights.base=null"]
    assert load(path) == load("sdv2-1.3b-480p", changes)


def test_chains_and_relative_paths(write):
    """Each path begins at the folder of the file that says it; the nearest file wins."""
    write("a", "extends: tiny\nstream: {height: 64, width: 64, sink_frames: 4}")
    write("sub/b", "extends: ../a.yaml\nstream: {height: 96}")
    path = write("sub/c", "extends: ./b.yaml\nstream: {sink_frames: 3}")
    stream = load(path).stream
    assert (stream.height, stream.width, stream.sink_frames) == (96, 64, 3)
    assert load(path).dit == load("tiny").dit


def test_a_file_without_a_name_is_called_as_its_file(write):
    """Otherwise its engine directory would be that of what it extends."""
    path = write("second", f"extends: {write('first', 'extends: tiny').name}")
    assert load(path).name == "second"


def test_what_is_printed_stands_alone(write, tmp_path: Path):
    preset = load(write("mine", "extends: tiny\nstream: {height: 64}"))
    text = config.dump(preset)
    assert "extends" not in yaml.safe_load(text)
    assert load(write("copy", text)) == preset


def test_the_shipped_variants_are_differences():
    """They were whole files once; what they hold is what is said here, and no more."""
    base = config.to_dict(load("sdv2-1.3b-480p"))
    for name in ("sdv2-1.3b-480p-taehv", "sdv2-14b-480p"):
        held = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
        assert held.pop("extends") == "sdv2-1.3b-480p"
        preset = config.to_dict(load(name))
        for key, value in preset.items():
            differs = value != base[key]
            assert differs or key not in held or key == "weights", key
            assert not differs or key in held, key


# Refusals


def test_problems_name_the_file_that_holds_them(write):
    """Keys of the preset's own file and overrides have no note."""
    base = write(
        "base", "extends: tiny\nstream: {height: -1, width: 100, steps: 3}\ndit: {dim: -1}"
    )
    path = write("mine", "extends: base.yaml\nstream: {width: -2}\ndit: {num_heads: 0}")
    note = f" (it comes from {base})"
    lines = problems(path, "dit.dim=-2")
    assert "preset mine: stream.height = -1: must be greater than 0" + note in lines
    assert "preset mine: stream.width = -2: must be greater than 0" in lines
    (unknown,) = (line for line in lines if "stream.steps" in line)
    assert "unknown key; did you mean schedule.steps?" in unknown and unknown.endswith(note)
    others = [line for line in lines if "dit." in line]
    assert len(others) == 2 and not any("comes from" in line for line in others)


def test_a_rule_between_fields_names_the_file_of_its_key(write):
    base = write("base", "extends: tiny\nstream: {window_frames: 2}")
    (line,) = problems(write("mine", "extends: base.yaml\nschedule: {steps: [700]}"))
    assert "stream.window_frames = 2: must be" in line and line.endswith(f"from {base})")


@pytest.mark.parametrize("files", [("a",), ("a", "b"), ("a", "b", "c")])
def test_circles_are_refused(write, files):
    paths = [write(f, f"extends: {files[(i + 1) % len(files)]}.yaml") for i, f in enumerate(files)]
    (line,) = problems(paths[0])
    circle = " -> ".join(f"{name}.yaml" for name in (*files, files[0]))
    assert line == f"preset a: extends: {circle} is a circle; one must stand alone"


@pytest.mark.parametrize(
    "base, reason",
    [
        ("huge", "preset huge: unknown; use one of sdv2-1.3b-480p, "),
        ("none.yaml", "none.yaml: no such file"),
        ("[tiny]", "must name a preset or a YAML file"),
        ("3", "must name a preset or a YAML file"),
    ],
)
def test_unknown_bases_are_refused(write, base: str, reason: str):
    path = write("mine", f"extends: {base}")
    (line,) = problems(path)
    assert line.startswith(f"preset mine: extends in {path}: ") and reason in line


def test_a_base_that_is_not_yaml(write):
    base = write("base", "stream: {")
    (line,) = problems(write("mine", "extends: base.yaml"))
    assert line.startswith(f"preset mine: cannot read {base}: ")


def test_extends_is_no_setting():
    """It is a file's word: an override cannot change what a preset is made from."""
    with pytest.raises(ConfigError, match="extends = tiny: unknown key"):
        load("tiny", ["extends=tiny"])
