"""Laying out a plan: packages, buffers, stages and weights, every shape worked out on paper."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from sdrt.engine.module import PackageModule
from sdrt.export.plan.plan import (
    FlatModule,
    Plan,
    PlannedPackage,
    as_tuple,
    dtype_name,
    meta_tensor,
    spec_of,
)
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.specs import (
    BufferKind,
    BufferSpec,
    Call,
    Group,
    Phase,
    Ref,
    Role,
    StageSpec,
    TensorSpec,
    buffer,
)

Names = Mapping[str, Role] | Sequence[str]
"""Buffers, with what their numbers mean where that is more than an activation."""


class PlanBuilder:
    """Collects packages, buffers and stages, and works out every shape on the meta device."""

    def __init__(self, dtype: torch.dtype, channels_last_3d: bool) -> None:
        """Start an empty plan.

        Args:
            dtype: of those parameters that have none of their own.
            channels_last_3d: store 5-D convolution weights that way (CUDA; on a CPU it costs).
        """
        self.plan = Plan()
        self._dtype, self._channels_last_3d = dtype, channels_last_3d

    def buffer(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        role: Role = "activation",
        kind: BufferKind = "io",
    ) -> Ref:
        """Declare a buffer of the session; return its reference."""
        meta = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self._declare(name, meta, role, kind)
        return buffer(name)

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

        Parameters take the plan's dtype where they are of float32, torch's default; a module
        that wants another one (FP8 weights, float32 scales kept in buffers) declares it.
        """
        if name in self.plan.packages:
            return
        with torch.device("meta"):
            module = make()
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(self._dtype)
        flat = FlatModule(module, 0, 0)
        self.plan.packages[name] = PlannedPackage(flat, (), backend=backend, bakes=bakes)

    def call(
        self,
        package: str,
        inputs: Sequence[str | Ref],
        outputs: Names = (),
        *,
        states: str = "",
        state_rows: int | None = None,
        weights: str = "",
        kind: BufferKind = "io",
    ) -> Call:
        """Return a call of ``package``; declares the outputs and states that are new.

        Args:
            inputs: whole buffers by name, or references.
            outputs: buffers that take the results, in order.
            states: prefix of the state buffers' names; none if the module's are whole names.
            state_rows: use only so many leading rows of state buffers declared before.
            weights: prefix of the weights' names.
            kind: of new output buffers.
        """
        planned = self.plan.packages[package]
        given = tuple(buffer(each) if isinstance(each, str) else each for each in inputs)
        if not planned.arguments:
            self._trace(planned, given, len(outputs))
        results = self._declare_results(planned, outputs, kind)
        kept = self._declare_states(planned, states, state_rows)
        names = self._declare_weights(planned, weights)
        call = Call(package=package, inputs=given, outputs=results, states=kept, weights=names)
        read = {ref.name for ref in given}
        planned.overwrites |= {i for i, ref in enumerate(results) if ref.name in read}
        specs = tuple(spec_of(self._meta(ref)) for ref in call.arguments)
        planned.arguments = planned.arguments or specs
        assert planned.arguments == specs, f"{package} is called with different shapes"
        return call

    def stage(
        self, name: str, group: Group, phase: Phase, calls: Sequence[Call], makes: str | None = None
    ) -> str:
        """Add a stage: calls that are captured and replayed together; return its name.

        Args:
            makes: the buffer with the result by which the stage's error is told.
        """
        assert name not in self.plan.stages, f"stage {name}: there are two"
        self.plan.stages[name] = StageSpec(
            name=name,
            group=group,
            phase=phase,
            calls=tuple(calls),
            makes=None if makes is None else buffer(makes),
        )
        return name

    def _trace(self, planned: PlannedPackage, inputs: Sequence[Ref], outputs: int) -> None:
        """Run a package's module on the meta device, for the shapes of its results."""
        module = planned.module.stage
        states = module.states("meta")
        keywords = {"states": states} if states else {}
        tensors = tuple(self._meta(ref) for ref in inputs)
        parameters = {name: value.to("meta") for name, value in module.state_dict().items()}
        with torch.no_grad(), torch.device("meta"):
            planned.results = as_tuple(functional_call(module, parameters, tensors, keywords))
        planned.module = FlatModule(module, len(inputs), outputs)

    def _declare_results(
        self, planned: PlannedPackage, outputs: Names, kind: BufferKind
    ) -> tuple[Ref, ...]:
        roles = outputs if isinstance(outputs, Mapping) else {}
        for name, result in zip(outputs, planned.results, strict=True):
            self._declare(name, result, roles.get(name, "activation"), kind, planned)
        return tuple(buffer(name) for name in outputs)

    def _declare_states(
        self, planned: PlannedPackage, prefix: str, rows: int | None
    ) -> tuple[Ref, ...]:
        module, refs = planned.module.stage, []
        roles = module.roles()
        for own, state in module.states("meta").items():
            name = f"{prefix}.{own}" if prefix else own
            if rows is None:
                self._declare(name, state, roles.get(own, "activation"), "state", planned)
            refs.append(buffer(name, None if rows is None else (0, rows)))
        return tuple(refs)

    def _declare_weights(self, planned: PlannedPackage, prefix: str) -> tuple[str, ...]:
        """Declare what the calls of a package name; what a plan bakes in is no argument."""
        names = []
        for own, value in planned.module.stage.state_dict().items():
            is_table = value.device.type != "meta"
            if planned.bakes:
                if not is_table:
                    name = planned.baked[own] = planned.baked_name(own)
                    self.plan.baked[name] = self._weight_spec(value)
                continue
            names.append(name := f"{prefix}.{own}")
            if is_table:
                self.table(name, value)
            else:
                self.plan.weights[name] = self._weight_spec(value)
        return tuple(names)

    def _declare(
        self,
        name: str,
        meta: Tensor,
        role: Role,
        kind: BufferKind,
        maker: PlannedPackage | None = None,
    ) -> None:
        layout = torch.contiguous_format
        if meta.ndim == 4 and meta.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
        if maker is not None and maker.bakes and not _is_hwc8(meta):
            layout = torch.contiguous_format
        stride = torch.empty_like(meta, memory_format=layout).stride()
        shape, dtype = tuple(meta.shape), dtype_name(meta.dtype)
        spec = BufferSpec(shape=shape, dtype=dtype, stride=stride, kind=kind, role=role)
        known = self.plan.buffers.setdefault(name, spec)
        assert known.shape == spec.shape and known.dtype == spec.dtype, f"buffer {name}: two shapes"

    def _meta(self, ref: Ref) -> Tensor:
        specs = self.plan.weights if ref.kind == "weight" else self.plan.buffers
        tensor = meta_tensor(specs[ref.name])
        return tensor if ref.rows is None else tensor[slice(*ref.rows)]

    def _weight_spec(self, value: Tensor) -> TensorSpec:
        layout = torch.contiguous_format
        if value.ndim == 4:
            layout = torch.channels_last
        elif value.ndim == 5 and self._channels_last_3d:
            layout = torch.channels_last_3d
        return spec_of(torch.empty_like(value, memory_format=layout))


def _is_hwc8(meta: Tensor) -> bool:
    """Return whether TensorRT's channels-last format, of 16 bits, holds a tensor."""
    return meta.itemsize == 2 and meta.ndim == 4 and meta.shape[1] % 8 == 0
