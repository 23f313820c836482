"""Building engine directories: resuming, refusing, replacing; the command line of build-engines."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from safetensors import SafetensorError

from sdrt.engine.preset.preset import PRESETS, from_dict, load, preset_names
from sdrt.engine.weights.source import Source, WeightsError, open_source
from sdrt.export import build as builder
from sdrt.export import disk, store
from sdrt.export.build import build
from sdrt.export.cli import main
from sdrt.export.disk import DiskFullError
from sdrt.export.errors import PackageError
from sdrt.export.folder import alone
from sdrt.export.inductor import backend as compiling
from sdrt.export.inductor.backend import Inductor
from sdrt.export.inductor.package import CompileError
from sdrt.export.job import Job
from sdrt.export.progress import Progress
from sdrt.export.recipe import Recipe
from sdrt.export.request import BuildError, Request, build_key, default_folder, parse_ranges
from sdrt.export.tensorrt.settings import Settings
from sdrt.export.variants import MixedError, check_addition
from sdrt.runtime.directory.contents import WeightsSpec
from sdrt.runtime.directory.manifest import read_manifest
from sdrt.runtime.session import Session

PACKAGES = len(Recipe.of(load("tiny")).plan().packages)
"""Of the preset tiny."""


class RecordedProgress(Progress):
    """Keeps what a build reports; ``on_finished`` is called at each finished package."""

    def __init__(self, on_finished: Callable[[], object] = lambda: None) -> None:
        super().__init__(Console(quiet=True), PACKAGES)
        self.compiled: list[str] = []
        self.taken_over: list[str] = []
        self.on_finished = on_finished

    def finished(self, name: str, seconds: float) -> None:
        self.compiled.append(name)
        self.on_finished()

    def reused(self, name: str) -> None:
        self.taken_over.append(name)


@pytest.fixture
def compile_fake(tiny_engine: Path, monkeypatch) -> Callable[..., None]:
    """Callable: from now on a package's compilation is ``make(name, path)`` in this process.

    Unless told otherwise it copies the finished package of the tiny engine, so that only the
    compilation itself is left out of a build.
    """

    def copy(name: str, path: Path) -> None:
        shutil.copyfile(tiny_engine / "packages" / f"{name}.pt2", path)

    def install(make: Callable[[str, Path], object] = copy) -> None:
        class Pool:
            def __init__(self, *_: object, **__: object) -> None: ...

            def submit(self, function, name: str, path: str) -> Future:
                future: Future = Future()
                try:
                    made = make(name, Path(path))
                except Exception as error:
                    future.set_exception(error)
                else:
                    if made is not NotImplemented:  # that stands for: takes for ever
                        future.set_result(1.5)
                return future

            def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None: ...

            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(compiling, "ProcessPoolExecutor", Pool)

    install()
    return install


@pytest.fixture
def request_tiny(tmp_path: Path) -> Request:
    preset = load("tiny")
    source = open_source("bundled", preset)
    return Request(Recipe.of(preset), source, tmp_path / "engine", torch.device("cpu"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


# Whole builds


def test_a_build_leaves_an_engine_and_nothing_else(
    compile_fake, request_tiny, tiny_engine: Path, tmp_path: Path
) -> None:
    """Reference: the engine that the command line built. Until it is complete, there is none."""
    progress = RecordedProgress(lambda: absent.append(not request_tiny.out.exists()))
    absent: list[bool] = []
    manifest = build(request_tiny, progress)
    assert absent == [True] * PACKAGES and progress.taken_over == []
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert files_of(request_tiny.out) == files_of(tiny_engine)
    assert read_manifest(request_tiny.out) == manifest
    assert sorted(progress.compiled) == sorted(manifest.packages)
    Session.open(request_tiny.out).close()
    rows = builder.table(manifest)
    assert len(rows) == PACKAGES + 1 and rows[-1][:2] == ("weights", "weights/00000.safetensors")


def test_an_interrupted_build_goes_on(compile_fake, request_tiny, tiny_engine: Path) -> None:
    """Finished packages are taken over, half-written files are not."""

    def interrupt() -> None:
        if len(first.compiled) == 3:
            raise KeyboardInterrupt

    first = RecordedProgress(interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(request_tiny, first)
    partial = request_tiny.out.with_name("engine.partial")
    assert not request_tiny.out.exists() and partial.is_dir()
    wait_for(lambda: list((partial / "weights").glob("*")))
    (partial / "packages" / "shift.tmp.pt2").write_text("half a package")
    (partial / "weights" / "00007.safetensors").write_text("of an older, larger source")

    second = RecordedProgress()
    build(request_tiny, second)
    assert sorted(second.taken_over) == sorted(first.compiled)
    assert len(second.compiled) == PACKAGES - 3
    assert not partial.exists() and files_of(request_tiny.out) == files_of(tiny_engine)


def test_another_request_takes_nothing_over(compile_fake, request_tiny) -> None:
    partial = request_tiny.out.with_name("engine.partial")
    (partial / "packages").mkdir(parents=True)
    (partial / "packages" / "shift.json").write_text("{}")
    (partial / "build.key").write_text("another preset, torch or version")
    progress = RecordedProgress()
    build(request_tiny, progress)
    assert progress.taken_over == [] and not partial.exists()


def test_the_key_covers_what_packages_are_made_of(request_tiny, monkeypatch) -> None:
    key, recipe = build_key(request_tiny), request_tiny.recipe
    assert build_key(replace(request_tiny, recipe=recipe.in_precision("bf16"))) != key
    changes = [
        {"fp8": ("qkv",)},
        {"how": {"taehv.encoder.first": "fused"}},
        {"backends": recipe.backends | {"dit": "tensorrt"}},
        {"tensorrt": Settings(ring="copy")},
    ]
    for change in changes:
        assert build_key(replace(request_tiny, recipe=recipe.model_copy(update=change))) != key
    # Weights and ranges are no part of a package: changing them keeps what is compiled.
    synthetic = open_source("synthetic", recipe.preset)
    split = recipe.model_copy(update={"ranges": ((0, 3), (3, 8))})
    assert build_key(replace(request_tiny, source=synthetic, recipe=split)) == key
    monkeypatch.setenv("CXX", "another-c++")
    assert build_key(request_tiny) != key


def test_replacing_needs_force_and_keeps_the_old_one_until_the_end(
    compile_fake, request_tiny, tmp_path: Path
) -> None:
    build(request_tiny, RecordedProgress())
    with pytest.raises(BuildError, match="engine: exists already; use --force to build it again"):
        build(request_tiny, RecordedProgress())
    forced = replace(request_tiny, force=True)

    def fail(name: str, path: Path) -> None:
        raise CompileError(f"package {name}: no")

    before = files_of(request_tiny.out)
    compile_fake(fail)
    with pytest.raises(PackageError, match="no"):
        build(forced, RecordedProgress())
    assert files_of(request_tiny.out) == before
    Session.open(request_tiny.out).close()

    mark = request_tiny.out / "old"
    mark.write_text("")
    compile_fake_again(compile_fake, before)
    build(forced, RecordedProgress())
    assert not mark.exists() and [path.name for path in tmp_path.iterdir()] == ["engine"]


def compile_fake_again(compile_fake, files: dict[str, bytes]) -> None:
    compile_fake(lambda name, path: path.write_bytes(files[f"packages/{name}.pt2"]) and None)


@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_engine_is_never_replaced(request_tiny, force: bool) -> None:
    """``--out ~ --force`` must not delete a home folder."""
    out = request_tiny.out
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(BuildError, match="exists and is not an engine directory; choose another"):
        build(replace(request_tiny, force=force), RecordedProgress())
    assert (out / "thesis.tex").exists() and [out] == list(out.parent.iterdir())
    (out / "thesis.tex").unlink()
    out.rmdir()
    out.with_name("engine.partial").mkdir()
    (out.with_name("engine.partial") / "thesis.tex").write_text("")
    with pytest.raises(BuildError, match="in the way"):
        build(replace(request_tiny, force=force), RecordedProgress())
    assert (out.with_name("engine.partial") / "thesis.tex").exists()


@pytest.mark.parametrize("place", ["/proc/engine", "file/engine"])
def test_an_unwritable_place(request_tiny, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="engine: cannot be written"):
        build(replace(request_tiny, out=tmp_path / place), RecordedProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_builds_of_one_folder(request_tiny, monkeypatch) -> None:
    """The second is refused in one line that names the first; a dead one's lock is none."""
    lock = request_tiny.out.with_name("engine.lock")
    code = (
        "import sys, pathlib; from sdrt.export.folder import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): print('begun', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(request_tiny.out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(BuildError) as caught:
            build(request_tiny, RecordedProgress())
        assert str(caught.value) == (
            f"{request_tiny.out}: process {other.pid} is building it; "
            "wait for that, or choose another --out"
        )
        assert [path.name for path in lock.parent.iterdir()] == ["engine.lock"]
        other.stdin.close()
        assert other.wait(60) == 0
    assert not lock.exists()
    lock.write_text("4711")  # what a build leaves that was killed
    with alone(request_tiny.out):
        assert lock.read_text() == str(os.getpid())
    assert not lock.exists()


# Failures


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        DiskFullError("plan dit: cannot be written"),
    ],
    ids=["space", "quota", "child"],
)
def test_a_full_disk_is_one_line(request_tiny, monkeypatch, error: Exception) -> None:
    """What was half written is removed, so that there is room again."""
    partial = request_tiny.out.with_name("engine.partial")

    def full(tensors, path: Path) -> None:
        path.write_bytes(b"half a file")
        (partial / "packages" / "shift.tmp.pt2").write_text("half a package")
        raise error

    def wait_for_weights(backend: Inductor, job: Job) -> None:
        job.stored.result()

    monkeypatch.setattr(store, "save_tensors", full)
    monkeypatch.setattr(Inductor, "build", wait_for_weights)
    with pytest.raises(BuildError, match="engine: the disk is full; make room and give the same"):
        build(request_tiny, RecordedProgress())
    left = [path for path in partial.rglob("*") if path.is_file()]
    assert left == [partial / "build.key"] and not request_tiny.out.exists()


def test_safetensors_full_disk_has_a_number(tmp_path: Path, monkeypatch) -> None:
    """It raises text only; without room the file system says why, with room its error stays."""

    def fail(tensors, path: Path) -> None:
        raise SafetensorError("I/O error: words that change")

    def full(file: int, offset: int, size: int) -> None:
        assert (offset, size) == (0, 40)
        raise OSError(errno.ENOSPC, "No space left on device")

    tensors = {"a": torch.zeros(10)}
    monkeypatch.setattr(disk, "save_file", fail)
    with pytest.raises(SafetensorError, match="words") as other:
        disk.save_tensors(tensors, tmp_path / "a.safetensors")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space") as caught:
        disk.save_tensors(tensors, tmp_path / "a.safetensors")
    assert disk.disk_is_full(caught.value) and not disk.disk_is_full(other.value)


def test_a_full_disk_is_found_among_the_causes() -> None:
    """As where a compiler wraps what it met."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("compiling failed") from error
    except RuntimeError as error:
        assert disk.disk_is_full(error)
    assert not disk.disk_is_full(OSError(errno.EACCES, "No space left on device"))


def test_a_package_that_crashes_names_the_compiler(
    compile_fake, request_tiny, tmp_path: Path, monkeypatch
) -> None:
    """A bad compiler is a message at build time; the package is not kept."""
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nread request\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    monkeypatch.setenv("CXX", "strange-c++")
    with pytest.raises(PackageError) as caught:
        build(request_tiny, RecordedProgress())
    message = str(caught.value)
    assert "was built but crashes when loaded or run (exit status -11)" in message
    assert "compiled with strange-c++: set CXX to another compiler" in message
    partial = request_tiny.out.with_name("engine.partial")
    assert list((partial / "packages").glob("*.json")) == [] and not request_tiny.out.exists()
    assert len(list((partial / "packages").glob("*.pt2"))) == PACKAGES - 1


def test_a_package_that_does_not_run(compile_fake, request_tiny) -> None:
    compile_fake(lambda name, path: path.write_bytes(b"no package") and None)
    with pytest.raises(PackageError, match="package .* was built but does not run: "):
        build(request_tiny, RecordedProgress())
    assert not request_tiny.out.exists()


def test_a_package_that_does_not_compile(compile_fake, request_tiny) -> None:
    def fail(name: str, path: Path) -> None:
        raise CompileError(f"package {name}: C++ compile error")

    compile_fake(fail)
    with pytest.raises(PackageError, match="^package .*: C.. compile error$"):
        build(request_tiny, RecordedProgress())


def test_a_compiler_that_was_killed(compile_fake, request_tiny) -> None:
    def fail(name: str, path: Path) -> None:
        raise BrokenProcessPool

    compile_fake(fail)
    with pytest.raises(PackageError, match="was killed, .* try again with fewer at once: --jobs 1"):
        build(request_tiny, RecordedProgress())


def test_wrong_weights_end_a_build_at_once(compile_fake, request_tiny) -> None:
    """Not after minutes of compiling, which here would take for ever."""
    compile_fake(lambda name, path: NotImplemented)
    preset = load("tiny", ["taehv.decoder_widths=[8, 8, 8, 8]"])
    source = open_source("bundled", preset)
    with pytest.raises(WeightsError, match="taehv: .* does not fit the model of the preset"):
        build(replace(request_tiny, recipe=Recipe.of(preset), source=source), RecordedProgress())
    assert not request_tiny.out.exists()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_ctrl_c_ends_the_command_and_keeps_its_work(tmp_path: Path) -> None:
    """The real command with real compilers, interrupted as a terminal does it."""
    partial = tmp_path / "engine.partial"
    command = [sys.executable, "-m", "sdrt.export.cli", "--device", "cpu", "--jobs", "1"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "engine")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: list((partial / "packages").glob("*.json")), 300)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 130, out + err
    assert "interrupted; the same command goes on where this one stopped" in err
    assert "Traceback" not in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["engine.partial"]


# Parts


def test_ranges() -> None:
    assert parse_ranges(None, 30) == ((0, 30),)
    assert parse_ranges("0:15,15:30", 30) == ((0, 15), (15, 30))
    assert parse_ranges("0:1,1:2,2:3", 3) == ((0, 1), (1, 2), (2, 3))


@pytest.mark.parametrize(
    "text",
    ["", ",", "all", "0", "0:30:1", "0:15", "0:15,16:30", "0:15,14:30", "15:30,0:15", "0:31"]
    + ["1:30", "0:0,0:30", "0:15,15:30,", "0:x", "-1:30", "30:0"],
)
def test_wrong_ranges(text: str) -> None:
    with pytest.raises(BuildError) as caught:
        parse_ranges(text, 30)
    assert str(caught.value) == (
        f"--ranges {text}: must be consecutive and cover blocks 0 to 30, such as 0:30"
    )


def test_ranges_change_the_stages_and_not_the_packages(compile_fake, request_tiny) -> None:
    split = request_tiny.recipe.model_copy(update={"ranges": ((0, 3), (3, 8))})
    manifest = build(replace(request_tiny, recipe=split), RecordedProgress())
    assert Recipe.model_validate(manifest.recipe) == split
    names = [stage.name for stage in manifest.stages if stage.phase == "steady"]
    assert [name for name in names if "dit" in name] == ["dit[0:3].steady", "dit[3:8].steady"]
    assert len(manifest.packages) == PACKAGES


def test_default_folder() -> None:
    assert default_folder(load("tiny"), torch.device("cpu")) == "tiny--cpu--fp32"


def test_weights_are_stored_in_shards(tmp_path: Path, monkeypatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr(store, "SHARD_BYTES", 100)
    tensors = {f"t{index}": torch.full((15,), float(index)) for index in range(5)}
    files = store.write_weights(tmp_path, iter(tensors.items()))
    assert [file.file for file in files] == [f"weights/0000{i}.safetensors" for i in range(3)]
    found = {name: t for file in files for name, t in load_file(tmp_path / file.file).items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_sources_of_weights_are_data(request_tiny, tmp_path: Path) -> None:
    """A path may hold whatever a path may hold; the manifest gives back what was asked for."""
    place = tmp_path / "a, b: c" / "vae: dit.safetensors"
    place.parent.mkdir()
    shutil.copyfile(PRESETS / "tiny" / "dit.safetensors", place)
    source = open_source("bundled", request_tiny.recipe.preset, {"dit": str(place)})
    request = replace(request_tiny, source=source)
    weights, _ = builder._store(request, request.recipe, request.recipe.plan(), tmp_path)
    read = WeightsSpec.model_validate_json(weights.model_dump_json())
    assert Source(request.recipe.preset, read.sources, source.named) == source


def test_another_source_of_weights_is_not_added(request_tiny, tiny_engine: Path) -> None:
    """Compared by component; both values are named."""
    sources = request_tiny.source.specs
    machine = request_tiny.machine()
    with pytest.raises(MixedError, match="holds weights dit = bundled, not /x: y, z"):
        check_addition(
            tiny_engine, request_tiny.recipe.preset, {**sources, "dit": "/x: y, z"}, machine
        )
    with pytest.raises(MixedError, match="is built for CPU .* already"):
        check_addition(tiny_engine, request_tiny.recipe.preset, sources, machine)


# The command line


@pytest.fixture
def run(invoke) -> Callable[..., SimpleNamespace]:
    """Callable: the result of build-engines with some arguments."""
    return partial(invoke, main)


@pytest.mark.parametrize("name", preset_names())
def test_print_config(run, name: str) -> None:
    result = run("--preset", name, "--print-config", "--set", "stream.height=256")
    assert result.exit_code == 0
    printed = from_dict(yaml.safe_load(result.stdout))
    assert printed == load(name, ["stream.height=256"])
    assert printed.stream.height == 256


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--preset", "huge"], "preset huge: unknown; use one of"),
        (["--set", "stream.height=100"], "stream.height = 100: must be divisible by 16"),
        (
            ["--set", "stream.heigth=128"],
            "stream.heigth = 128: unknown key; did you mean stream.height",
        ),
        (["--set", "stream.height"], "must be key=value"),
        (["--set", "stream.window_frames=2"], "window_frames = 2: must be"),
        (["--ranges", "0:4"], "--ranges 0:4: must be consecutive and cover blocks 0 to 8"),
        (["--ranges", "none"], "--ranges none: must be consecutive"),
        (["--device", "tpu"], "--device tpu: no such device; use cuda or cpu"),
        (["--device", "meta"], "--device meta: no such device; use cuda or cpu"),
        (["--component", "dit"], "--component dit: expected PART=SOURCE"),
        (["--component", "vae=x"], "uses no such component"),
        (["--weights", "no/where/at/all"], "no such file or folder"),
        (["--out", "/proc/engine"], "/proc/engine: cannot be written"),
        (["--out", "/proc"], "/proc: exists and is not an engine directory"),
    ],
)
def test_refusals(run, arguments: list[str], reason: str, tmp_path: Path, monkeypatch) -> None:
    """Exit code 2, one line, nothing left behind, before anything is compiled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Inductor, "build", lambda *_: pytest.fail("compiled"))
    result = run("--device", "cpu", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu(run, tmp_path: Path) -> None:
    result = run("--device", "cuda", "--out", tmp_path / "engine")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no CUDA device is here: use --device cpu")
    assert list(tmp_path.iterdir()) == []


def test_the_closing_table(run, compile_fake, tmp_path: Path, tiny_engine: Path) -> None:
    out = tmp_path / "engine"
    result = run("--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    for name in read_manifest(tiny_engine).packages:
        assert f"packages/{name}.pt2" in result.stdout
    assert "weights/00000.safetensors" in result.stdout
    assert f"run it: sdrun --engine {out}" in result.stdout
    assert run("--device", "cpu", "--out", out).exit_code == 2
