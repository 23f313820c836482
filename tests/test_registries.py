"""Who may ask for what by name, read from the source text: an autoencoder's name decides nothing
outside the tables that are keyed by it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdrt.engine.coder import CODERS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("engine", "kernels", "export", "runtime", "bench")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

LITERALS = (ast.Constant, ast.Tuple, ast.List, ast.Set)
"""Parts of an expression that hold strings as they are."""


@dataclass(frozen=True)
class Registry:
    """Names that are looked up in one place."""

    names: frozenset[str]
    places: tuple[str, ...]
    """Files, or folders with a slash at the end, that may name them."""


REGISTRIES = {
    "autoencoders": Registry(
        frozenset(
            word
            for coder in CODERS.values()
            for word in (coder.name, coder.component, coder.encoder_stage, coder.decoder_stage)
        ),
        (
            "engine/coder.py",
            "engine/wan_vae/",
            "engine/taehv/",
            "export/tune/measure.py",
            "bench/baseline/coder.py",
            "bench/scenarios.py",  # the names of scenarios
        ),
    ),
}


def decisions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the strings that code compares with or looks up, and their lines.

    Those are operands of comparisons and what tuples among them hold, keys of dictionaries, what
    is looked up in one, cases of a match, and prefixes and suffixes that are tested.
    """
    for node in ast.walk(tree):
        asked: list[ast.AST | None] = []
        match node:
            case ast.Compare():
                asked = [node.left, *node.comparators]
            case ast.Dict():
                asked = [*node.keys]
            case ast.Subscript():
                asked = [node.slice]
            case ast.MatchValue():
                asked = [node.value]
            case ast.Call(func=ast.Attribute(attr="get" | "startswith" | "endswith")):
                asked = [*node.args[:1]]
        for part in asked:
            for leaf in ast.walk(part) if isinstance(part, LITERALS) else ():
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    yield leaf.value.rstrip("."), leaf.lineno


@pytest.mark.parametrize("kind", REGISTRIES)
def test_names_decide_in_their_registry_only(kind: str) -> None:
    registry = REGISTRIES[kind]
    found = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        if any(
            name == place or place[-1] == "/" and name.startswith(place)
            for place in registry.places
        ):
            continue
        text = path.read_text()
        found += [
            f"{name}:{line}: {word}"
            for word, line in decisions(ast.parse(text))
            if word in registry.names
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "x == 'taehv'",
        "'taehv' in names",
        "x in ('none', 'taehv')",
        "{'taehv': 1}",
        "table['taehv']",
        "table.get('taehv')",
        "name.startswith('taehv.')",
        "match x:\n    case 'taehv': pass",
    ],
)
def test_decisions_are_found(text: str) -> None:
    """And what only names it is none."""
    assert "taehv" in {word for word, _ in decisions(ast.parse(text))}
    assert not list(decisions(ast.parse("load('taehv'); name = 'taehv'")))
