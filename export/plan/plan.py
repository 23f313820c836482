"""A plan: what an engine directory will hold, before anything of it is compiled."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdrt.engine.module import PackageModule
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.specs import (
    BufferSpec,
    Call,
    Condition,
    StageSpec,
    StepSpec,
    StreamSpec,
    TensorSpec,
)


class FlatModule(nn.Module):
    """A package's module as a function of one flat list: inputs, outputs, states, weights.

    Weights are arguments too, so one package serves every layer and a package holds code only.
    """

    def __init__(self, module: PackageModule, inputs: int, outputs: int) -> None:
        super().__init__()
        self._hidden = [module]  # in a list, so that its parameters are not registered here
        self.inputs, self.outputs = inputs, outputs
        self.state_names = list(module.states("meta"))
        self.weight_names = list(module.state_dict())

    @property
    def stage(self) -> PackageModule:
        """The module itself."""
        return self._hidden[0]

    def forward(self, *flat: Tensor) -> tuple[()]:
        """Run the module and write its results into the output arguments."""
        inputs, rest = flat[: self.inputs], flat[self.inputs :]
        outputs, rest = rest[: self.outputs], rest[self.outputs :]
        states = dict(zip(self.state_names, rest, strict=False))
        weights = dict(zip(self.weight_names, rest[len(states) :], strict=True))
        keywords = {"states": states} if states else {}
        results = functional_call(self._hidden[0], weights, inputs, keywords)
        for output, result in zip(outputs, as_tuple(results), strict=True):
            output.copy_(result)
        return ()


@dataclass
class PlannedPackage:
    """One package to compile: its code and the tensors it takes."""

    module: FlatModule
    arguments: tuple[TensorSpec, ...]
    results: tuple[Tensor, ...] = ()
    """What a call returns, on the meta device."""
    backend: Backend = "inductor"
    bakes: bool = False
    """Whether the weights become part of the compiled file, whose layouts are TensorRT's."""
    baked: dict[str, str] = field(default_factory=dict)
    """Parameter -> weight that is part of the compiled file, not an argument (TensorRT's)."""
    overwrites: frozenset[int] = frozenset()
    """Outputs that lie where a call has an input too; a plan must not write there directly."""

    def baked_name(self, parameter: str) -> str:
        """Return what the engine calls a parameter that is part of the compiled file."""
        prefixes: Mapping[str, str] = getattr(self.module.stage, "weight_prefixes", {})
        head, _, tail = parameter.partition(".")
        return f"{prefixes.get(head, head)}.{tail}"


@dataclass
class Plan:
    """What an engine directory will hold, before anything is compiled."""

    stream: StreamSpec | None = None
    """The numbers of its stream; a plan of single packages has none."""
    packages: dict[str, PlannedPackage] = field(default_factory=dict)
    buffers: dict[str, BufferSpec] = field(default_factory=dict)
    stages: dict[str, StageSpec] = field(default_factory=dict)
    steps: tuple[StepSpec, ...] = ()
    conditions: tuple[Condition, ...] = ()
    weights: dict[str, TensorSpec] = field(default_factory=dict)
    """Every weight that a call or an op names."""
    baked: dict[str, TensorSpec] = field(default_factory=dict)
    """Every weight that is part of a compiled file."""
    tables: dict[str, Tensor] = field(default_factory=dict)
    """Those weights that the plan itself computes: schedule and rotary tables."""

    def calls(self, package: str) -> list[Call]:
        """Return every call of a package."""
        calls = (call for stage in self.stages.values() for call in stage.calls)
        return [call for call in calls if call.package == package]


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a module's results as a tuple."""
    return results if isinstance(results, tuple) else (results,)


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def spec_of(tensor: Tensor) -> TensorSpec:
    """Return shape, dtype and strides of a tensor."""
    return TensorSpec(
        shape=tuple(tensor.shape), dtype=dtype_name(tensor.dtype), stride=tensor.stride()
    )


def meta_tensor(spec: TensorSpec) -> Tensor:
    """Return a meta tensor of a spec."""
    dtype = getattr(torch, spec.dtype)
    return torch.empty_strided(spec.shape, spec.stride, dtype=dtype, device="meta")
