"""Nobody asks for a backend's name: what differs is asked of the backend, or of its loader."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdrt.runtime.programs.loaders import LOADERS

ROOT = Path(__file__).resolve().parents[1]
HOMES = ("export/inductor/", "export/tensorrt/", "runtime/programs/")
"""Where a backend lives; there it may ask for its own name."""
SOURCES = sorted(
    path
    for folder in ("engine", "kernels", "export", "runtime", "bench")
    for path in (ROOT / folder).rglob("*.py")
)


def names_in(node: ast.AST) -> set[str]:
    """Return the backends' names among the literals of an expression."""
    values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    return LOADERS.keys() & {value for value in values if isinstance(value, str)}


def comparisons(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Yield the line and the names of every comparison with, and case of, a backend's name."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.match_case)):
            asked = node.pattern if isinstance(node, ast.match_case) else node
            if found := names_in(asked):
                yield asked.lineno, found


def plans_told_apart(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that look at what only a TensorRT plan has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "engine":
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in ("package", "spec", "planned"):
                yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_comparison_with_a_backends_name(path: Path) -> None:
    place, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    home = next((home for home in HOMES if place.startswith(home)), None)
    for line, names in comparisons(tree):
        own = home is not None and ("inductor" not in names or home == "export/inductor/")
        assert own, f"{place}:{line}: compares with {', '.join(sorted(names))}"
    if home is None:
        assert list(plans_told_apart(tree)) == [], f"{place}: asks for what plans have"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('backend == "inductor"', True),
        ('kinds != {"inductor"}', True),
        ('{"tensorrt", "tensorrt-rtx"} <= kinds', True),
        ('"tensorrt-rtx" in build', True),
        ('match backend:\n    case "tensorrt": pass', True),
        ('build("inductor")', False),
        ('backend == "cudnn"', False),
    ],
)
def test_the_test_finds_them(source: str, found: bool) -> None:
    assert bool(list(comparisons(ast.parse(source)))) == found
