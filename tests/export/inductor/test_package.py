"""The Inductor backend: packages compute what their modules do, on whatever they are given."""

import errno
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.exc import CppCompileError

from sdrt.engine.module import PackageModule
from sdrt.export.disk import DiskFullError
from sdrt.export.inductor.package import CompileError, compile_package, options
from sdrt.export.plan.builder import PlanBuilder
from sdrt.export.plan.examples import example_arguments
from sdrt.export.plan.plan import PlannedPackage
from sdrt.runtime.directory.specs import TensorSpec
from sdrt.runtime.programs.aoti import AotiProgram

CPU = torch.device("cpu")
WIDTH = 256


class Memory(PackageModule):
    """A layer over its input and a running mean of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def states(self, device: torch.device | str = "meta") -> dict[str, Tensor]:
        return {
            "seen": torch.zeros(4, WIDTH, device=device),
            "row": torch.zeros(1, dtype=torch.int64, device=device),
        }

    def forward(self, x: Tensor, *, states: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        seen, row = states["seen"], states["row"]
        seen.index_copy_(0, row % 4, x)
        row.copy_(row + 1)
        return torch.tanh(self.layer(seen.mean(dim=0, keepdim=True))), seen.sum(dim=1)


def planned(module: type[PackageModule]) -> PlannedPackage:
    builder = PlanBuilder(torch.float32, channels_last_3d=False)
    builder.buffer("x", (1, WIDTH), torch.float32)
    builder.package("p", module)
    outputs = ["a", "b"] if module is Memory else ["a"]
    builder.call("p", ["x"], outputs, states="s", weights="w")
    return builder.plan.packages["p"]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> tuple[PlannedPackage, Path]:
    path = tmp_path_factory.mktemp("package") / "memory.pt2"
    plan = planned(Memory)
    compile_package(plan, path, CPU)
    return plan, path


def arguments(seed: int) -> list[Tensor]:
    """x, both outputs, both states, weight, bias."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, WIDTH, generator=generator),
        torch.full((1, WIDTH), torch.nan),
        torch.full((4,), torch.nan),
        torch.zeros(4, WIDTH),
        torch.zeros(1, dtype=torch.int64),
        torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5,
        torch.randn(WIDTH, generator=generator),
    ]


def test_a_package_computes_what_its_module_does(package, relative_error) -> None:
    """Reference: the eager flat module. Six steps on tensors that stay where they are."""
    plan, path = package
    program = AotiProgram(path, -1)
    ours, reference = arguments(1), arguments(1)
    addresses = [tensor.data_ptr() for tensor in ours]
    generator = torch.Generator().manual_seed(9)
    with torch.inference_mode():
        for _ in range(6):
            x = torch.randn(1, WIDTH, generator=generator)
            ours[0].copy_(x)
            reference[0].copy_(x)
            program.run(ours)
            plan.module(*reference)
            for a, b in zip(ours, reference, strict=True):
                assert relative_error(a, b) <= 1e-6
    assert [tensor.data_ptr() for tensor in ours] == addresses
    assert ours[4].item() == 6


def test_a_package_serves_any_weights(package, relative_error) -> None:
    """Weights are arguments: the package holds code only, and is small."""
    plan, path = package
    program = AotiProgram(path, -1)
    for seed in (2, 3):
        ours, reference = arguments(seed), arguments(seed)
        with torch.inference_mode():
            program.run(ours)
            plan.module(*reference)
        assert relative_error(ours[1], reference[1]) <= 1e-6
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    assert [name for name in sizes if name.endswith(".so")]
    assert sum(size for name, size in sizes.items() if "/weights/" in name) < WIDTH**2


def test_two_programs_share_nothing(package) -> None:
    """One package loaded twice, and one program on two sets of states."""
    _, path = package
    one, two = AotiProgram(path, -1), AotiProgram(path, -1)
    a, b, c = arguments(4), arguments(4), arguments(4)
    with torch.inference_mode():
        for _ in range(2):
            one.run(a)
            one.run(b)
        for _ in range(2):
            two.run(c)
    assert all(map(torch.equal, a, b)) and all(map(torch.equal, a, c))


def test_what_cannot_be_traced_is_an_error_in_one_line(tmp_path: Path) -> None:
    class Branching(PackageModule):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.device.type == "meta" or x.sum() > 0 else x - 1

    with pytest.raises(CompileError) as caught:
        compile_package(planned(Branching), tmp_path / "p.pt2", CPU)
    assert str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_example_arguments_are_distinct_and_fit() -> None:
    """Shared tensors would be merged into one input."""
    specs = (
        TensorSpec(shape=(2, 3, 4, 5), dtype="float32", stride=(60, 1, 15, 3)),
        TensorSpec(shape=(2, 3, 4, 5), dtype="float32", stride=(60, 1, 15, 3)),
        TensorSpec(shape=(7,), dtype="int64", stride=(1,)),
        TensorSpec(shape=(2, 2), dtype="bfloat16", stride=(2, 1)),
    )
    made = example_arguments(specs, CPU)
    for spec, tensor in zip(specs, made, strict=True):
        assert (tuple(tensor.shape), tensor.stride()) == (spec.shape, spec.stride)
        assert str(tensor.dtype) == f"torch.{spec.dtype}"
    assert len({tensor.data_ptr() for tensor in made}) == len(made)
    assert made[2].count_nonzero() == 0 and made[0].abs().mean() < 0.1
    assert all(map(torch.equal, made, example_arguments(specs, CPU)))


def test_options_are_plain_values() -> None:
    """They are hashed into the key of a resumed build."""
    for device in ("cpu", "cuda"):
        chosen = options(torch.device(device))
        assert chosen["aot_inductor.package_constants_in_so"] is False
        assert all(isinstance(value, (bool, int, str)) for value in chosen.values())


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch) -> None:
    """Inductor's own message spans pages; its first line and what to do are kept."""

    def fail(*_: object, **__: object) -> None:
        try:
            raise CppCompileError(["strange-c++", "a.cpp"], "no such option")
        except CppCompileError as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    with pytest.raises(CompileError) as caught:
        compile_package(planned(Memory), tmp_path / "p.pt2", CPU)
    assert str(caught.value) == (
        "CppCompileError: C++ compile error; "
        "set CXX to a working C++ compiler, such as CXX=/usr/bin/g++"
    )


def test_other_errors_do_not_name_the_compiler(tmp_path: Path, monkeypatch) -> None:
    """Whatever words they use; a full disk is told apart."""
    errors = [ValueError("no C++ here\nat all"), OSError(errno.ENOSPC, "No space left on device")]
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", Mock(side_effect=list(errors)))
    with pytest.raises(CompileError, match=r"^no C\+\+ here$"):
        compile_package(planned(Memory), tmp_path / "p.pt2", CPU)
    with pytest.raises(DiskFullError, match="No space left on device"):
        compile_package(planned(Memory), tmp_path / "p.pt2", CPU)
