"""Who may import whom, read from the source text (docs/design.md holds the same table)."""

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "kernels": {"sdrt.kernels"},
    "engine": {"sdrt.engine", "sdrt.kernels"},
    "runtime": {"sdrt.runtime", "sdrt.kernels"},
    "export": {
        *("sdrt.export", "sdrt.engine", "sdrt.kernels"),
        *("sdrt.runtime.directory", "sdrt.runtime.command"),
    },
    "bench": {"sdrt"},
}
"""Folder -> modules, with what lies below them."""

ALSO = {
    "export/trial_worker.py": {"sdrt.runtime.programs.loaders"},
    "export/plan/eager.py": {
        "sdrt.runtime.programs.program",
        "sdrt.runtime.engine",
        "sdrt.runtime.session",
    },
    "export/quantise/calibrate.py": {
        "sdrt.runtime.session",
        "sdrt.runtime.sample_clip",
        "sdrt.runtime.video.reader",
    },
}
"""A new package is tried out, and plans are rehearsed, as the runtime will run them."""

FOREIGN = {"kernels": {"torch", "triton"}}
"""Packages from outside that a folder is limited to; the standard library aside."""

SOURCES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("sdrt", *parts)).removesuffix(".__init__")


def imports(path: Path, lazy: bool = True) -> Iterator[tuple[str, int]]:
    """Yield the modules that a file imports and the lines; ``lazy``: inside functions too.

    ``from package import name`` counts as ``package.name`` where that is one of our modules.
    Imports for type checkers only are left out unless ``lazy``.
    """
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        match node:
            case ast.Import():
                yield from ((alias.name, node.lineno) for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{path}:{node.lineno}: a relative import"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield (inner if inner in MODULES else node.module or ""), node.lineno
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if not lazy:
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not lazy:
                pending += node.orelse
                continue
        pending += ast.iter_child_nodes(node)


MODULES = {module_name(path): path for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_keep_to_the_table(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[folder] | ALSO.get(path.relative_to(ROOT).as_posix(), set())
    for name, line in imports(path):
        top = name.split(".")[0]
        if top == "sdrt":
            fits = any(name == module or name.startswith(module + ".") for module in allowed)
            assert fits, f"{path}:{line}: {folder} may not import {name}"
        elif folder in FOREIGN and top not in sys.stdlib_module_names:
            assert top in FOREIGN[folder], f"{path}:{line}: {folder} may not import {top}"
        assert top not in MAY_IMPORT, f"{path}:{line}: import sdrt.{name}, not {name}"


def test_there_are_no_cycles() -> None:
    """Among the imports that run when a module is imported."""
    graph = {
        module: {name for name, _ in imports(path, lazy=False) if name in MODULES}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a cycle: {' -> '.join([*above, module])}"
        if module not in done:
            for name in graph[module]:
                visit(name, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_top_folders_are_no_packages() -> None:
    """An ``__init__.py`` there would shadow other projects' packages of these names."""
    assert [folder for folder in MAY_IMPORT if (ROOT / folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("command", ["--help", "--print-config"])
def test_asking_build_engines_needs_no_torch(command: str) -> None:
    """Help and a preset's settings come without a look at any device."""
    code = (
        "import sys; from sdrt.export import cli\n"
        "print(cli.main(), 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
    assert done.stderr == "0 False\n"
    assert "--preset" in done.stdout or "name: tiny" in done.stdout


@pytest.mark.parametrize("module", ["build", "request", "backends", "inductor.worker"])
def test_a_build_streams_nothing_unless_it_calibrates(module: str) -> None:
    """Neither a session nor what reads and writes clips is imported to build an engine."""
    code = (
        "import sys, sdrt.export.{0}\n"
        "unwanted = {{'sdrt.runtime.session', 'sdrt.runtime.sample_clip', 'av', 'PIL'}}\n"
        "print(sorted(unwanted & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code.format(module)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_builder_does_without_optional_packages():
    """Reference: an install without extras; blocked modules stand for missing ones."""
    blocked = ["onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "tensorrt_rtx"]
    blocked += ["matplotlib", "pynvml", "nvtx", "triton"]
    modules = ["export.cli", "export.build", "export.inductor.worker", "export.plan.make"]
    modules += ["export.trial_worker"]
    modules += ["runtime.cli", "runtime.session", "runtime.demo", "bench.cli", "bench.run"]
    lines = ["import sys"] + [f"sys.modules[{name!r}] = None" for name in blocked]
    lines += [f"import sdrt.{name}" for name in modules]
    command = [sys.executable, "-c", "; ".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_errors_have_one_base(path: Path) -> None:
    """Exception classes derive from SdrtError, or from another of ours (read by their names)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            ours = bases - set(dir(builtins))
            # A RuleError is for pydantic, and never leaves it.
            assert ours or node.name in ("SdrtError", "RuleError"), (
                f"{path}:{node.lineno}: {node.name}"
            )
