"""A plan: the packages to compile, the buffers they share, and the stages that call them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdrt.engine.module import PackageModule
from sdrt.runtime.directory.manifest import (
    Backend,
    BufferKind,
    BufferSpec,
    Call,
    Group,
    Phase,
    StageSpec,
    TensorSpec,
    split_rows,
)


class FlatModule(nn.Module):
    """A stage module as a function of one flat list: inputs, outputs, states, weights.

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
        """The stage module itself."""
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
    """Whether weights are part of the compiled file, not arguments."""
    baked: dict[str, str] = field(default_factory=dict)
    """Parameter -> weight that is part of the compiled file."""
    overwrites: frozenset[int] = frozenset()
    """Outputs that lie where a call has an input too; a plan must not write there directly."""


@dataclass
class Plan:
    """What an engine directory will hold, before anything is compiled."""

    packages: dict[str, PlannedPackage] = field(default_factory=dict)
    buffers: dict[str, BufferSpec] = field(default_factory=dict)
    stages: list[StageSpec] = field(default_factory=list)
    weights: dict[str, TensorSpec] = field(default_factory=dict)
    """Every weight that a call names, without the ``w:`` prefix."""
    baked: dict[str, TensorSpec] = field(default_factory=dict)
    """Every weight that is part of a compiled file."""
    tables: dict[str, Tensor] = field(default_factory=dict)
    """Those weights that the plan itself computes: schedule and rotary tables."""


class PlanBuilder:
    """Collects packages, buffers and stages, and works out every shape on the meta device."""

    def __init__(self, dtype: torch.dtype, channels_last_3d: bool) -> None:
        """Start an empty plan.

        Args:
            dtype: of all parameters.
            channels_last_3d: store 5-D convolution weights that way (CUDA; on a CPU it costs).
        """
        self.plan = Plan()
        self._dtype, self._channels_last_3d = dtype, channels_last_3d

    def buffer(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, kind: BufferKind = "io"
    ) -> str:
        """Declare a buffer of the session; return its name."""
        self._declare(name, torch.empty(tuple(shape), dtype=dtype, device="meta"), kind)
        return name

    def table(self, name: str, value: Tensor) -> str:
        """Add a constant that the runtime reads as weight ``name``."""
        self.plan.tables[name] = value
        self.plan.weights[name] = spec_of(value)
        return name

    def package(
        self,
        name: str,
        make: Callable[[], PackageModule],
        backend: Backend = "inductor",
        bakes: bool = False,
    ) -> None:
        """Add a package, unless it is there; its arguments are known after its first call.

        Args:
            bakes: the backend makes weights part of its files.
        """
        if name in self.plan.packages:
            return
        with torch.device("meta"):
            module = make()
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(self._dtype)
        self.plan.packages[name] = PlannedPackage(
            FlatModule(module, 0, 0), (), backend=backend, bakes=bakes
        )

    def call(
        self,
        package: str,
        inputs: Sequence[str],
        outputs: Sequence[str] = (),
        *,
        states: str = "",
        state_rows: int | None = None,
        weights: str = "",
        kind: BufferKind = "io",
    ) -> Call:
        """Return a call of ``package``; declares the outputs and states that are new.

        Args:
            inputs: buffers, as ``name``, ``name[a:b]`` (rows) or ``w:table``.
            outputs: buffers that take the results, in order.
            states: prefix of the state buffers' names; none if the module's are whole names.
            state_rows: use only so many leading rows of state buffers declared before.
            weights: prefix of the weights' names.
            kind: of new output buffers.
        """
        planned = self.plan.packages[package]
        module = planned.module.stage
        prefix = f"{states}." if states else ""
        state_tensors = module.states("meta")
        if not planned.arguments:
            keywords = {"states": state_tensors} if state_tensors else {}
            tensors = tuple(self._meta(name) for name in inputs)
            meta = {name: value.to("meta") for name, value in module.state_dict().items()}
            with torch.no_grad(), torch.device("meta"):
                results = functional_call(module, meta, tensors, keywords)
            planned.results = as_tuple(results)
            planned.module = FlatModule(module, len(inputs), len(outputs))
        for name, result in zip(outputs, planned.results, strict=True):
            self._declare(name, result, kind, planned.bakes)
        rows = "" if state_rows is None else f"[0:{state_rows}]"
        for name, state in state_tensors.items():
            if state_rows is None:
                self._declare(f"{prefix}{name}", state, "state", planned.bakes)
        if planned.bakes:
            weight_names = []
            prefixes: Mapping[str, str] = getattr(module, "weight_prefixes", {})
            for name, value in module.state_dict().items():
                if value.device.type == "meta":
                    head, _, tail = name.partition(".")
                    planned.baked[name] = weight = f"{prefixes.get(head, head)}.{tail}"
                    self.plan.baked[weight] = self._weight_spec(value)
        else:
            weight_names = [f"{weights}.{name}" for name in module.state_dict()]
        for name, value in zip(weight_names, module.state_dict().values(), strict=False):
            if value.device.type != "meta":
                self.table(name, value)
            else:
                self.plan.weights[name] = self._weight_spec(value)
        arguments = (
            *inputs,
            *outputs,
            *(f"{prefix}{name}{rows}" for name in state_tensors),
            *(f"w:{name}" for name in weight_names),
        )
        read = {split_rows(name)[0] for name in inputs}
        planned.overwrites |= {
            index for index, name in enumerate(outputs) if split_rows(name)[0] in read
        }
        specs = tuple(self._spec(name) for name in arguments)
        planned.arguments = planned.arguments or specs
        assert planned.arguments == specs, f"{package} is called with different shapes"
        return Call(package=package, arguments=arguments)

    def stage(self, name: str, group: Group, phase: Phase, calls: Sequence[Call]) -> None:
        """Add a stage: calls that are captured and replayed together."""
        self.plan.stages.append(StageSpec(name=name, group=group, phase=phase, calls=tuple(calls)))

    def _declare(self, name: str, meta: Tensor, kind: BufferKind, is_plan: bool = False) -> None:
        layout = torch.contiguous_format
        if meta.ndim == 4 and meta.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
        if is_plan and not (meta.itemsize == 2 and meta.ndim == 4 and meta.shape[1] % 8 == 0):
            layout = torch.contiguous_format  # TensorRT's channels-last format is HWC8, of 16 bits
        stride = torch.empty_like(meta, memory_format=layout).stride()
        spec = BufferSpec(
            shape=tuple(meta.shape), dtype=dtype_name(meta.dtype), stride=stride, kind=kind
        )
        known = self.plan.buffers.setdefault(name, spec)
        assert known.shape == spec.shape and known.dtype == spec.dtype, f"buffer {name}: two shapes"

    def _spec(self, argument: str) -> TensorSpec:
        if argument.startswith("w:"):
            return self.plan.weights[argument[2:]]
        return spec_of(self._meta(argument))

    def _meta(self, argument: str) -> Tensor:
        if argument.startswith("w:"):
            return meta_tensor(self.plan.weights[argument[2:]])
        name, first, last = split_rows(argument)
        tensor = meta_tensor(self.plan.buffers[name])
        return tensor if first is None else tensor[first:last]

    def _weight_spec(self, value: Tensor) -> TensorSpec:
        layout = torch.contiguous_format
        if value.ndim == 4:
            layout = torch.channels_last
        elif value.ndim == 5 and self._channels_last_3d:
            layout = torch.channels_last_3d
        return spec_of(torch.empty_like(value, memory_format=layout))


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
