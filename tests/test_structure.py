"""docs/structure.md names every module, and nothing else."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("engine", "kernels", "export", "runtime", "bench")
SUFFIXES = {".py", ".cu", ".cuh", ".h"}


def modules() -> set[str]:
    """Return the path of every module, and of the CUDA sources."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix in SUFFIXES}


def named() -> list[str]:
    """Return the paths that the document names: lines that begin so, below their folder's."""
    folder, found = "", []
    for line in (ROOT / "docs/structure.md").read_text().splitlines():
        if heading := re.fullmatch(r"## (\S+)", line):
            folder = heading[1]
        elif entry := re.match(r"- `(\S+)`: \S", line):
            found.append(f"{folder}/{entry[1]}")
    return found


def test_every_module_has_its_line() -> None:
    """Reference: the folders themselves."""
    assert sorted(modules() - set(named())) == []


def test_every_line_has_its_module() -> None:
    assert sorted(set(named()) - modules()) == []


def test_no_module_has_two_lines() -> None:
    assert [path for path, count in Counter(named()).items() if count > 1] == []
