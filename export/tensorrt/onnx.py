"""Stage modules to ONNX: functions of inputs and states whose weights keep their names."""

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from sdrt.engine.module import PackageModule
from sdrt.export.plan.eager import with_weights
from sdrt.export.plan.plan import PlannedPackage, as_tuple
from sdrt.kernels.errors import SdrtError

OPSET = 24
FUSED_HEAD_DIMS = frozenset({64, 80, 96, 128, 160, 192, 256})
"""Head sizes that TensorRT has one attention kernel for, in 16 bits."""
_PREFIX = "stage."
"""What the exporter puts before the state dict's names: the wrapper's attribute."""
LARGE_BYTES = 1 << 10
"""Initialisers from here on lie in a file of their own beside the graph."""


class ExportError(SdrtError):
    """A stage could not be exported; the message says what stood in the way."""


@dataclass(frozen=True)
class Binding:
    """A tensor of the graph and the argument of the package that it is."""

    tensor: str
    argument: int


@dataclass
class OnnxStage:
    """One stage as an ONNX graph."""

    model: ir.Model
    inputs: list[Binding] = field(default_factory=list)
    outputs: list[Binding] = field(default_factory=list)
    """Results, written directly."""
    caches: list[Binding] = field(default_factory=list)
    """K/V caches after the update: they lie at the address of the cache they update."""
    banks: list[Binding] = field(default_factory=list)
    """New values of states, and results that overwrite an input: copied there afterwards."""
    channels_last: set[str] = field(default_factory=set)
    """Tensors that lie in memory with their channels innermost."""
    weights: frozenset[str] = frozenset()
    """Initialisers that are weights of the model; the others are part of the graph."""
    fp8_linears: int = 0
    """Linears that were quantised to FP8."""

    def save(self, path: Path) -> None:
        """Write the graph to ``path`` and its weights to ``<path>.data``."""
        ir.save(
            self.model,
            path,
            external_data=f"{path.name}.data",
            size_threshold_bytes=LARGE_BYTES,
        )

    def graph_sha256(self) -> str:
        """Return a hash of the graph: of its weights, only the names and shapes count."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.graph.initializers.items()):
            tensor = value.const_value
            assert tensor is not None
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            if name not in self.weights:
                digest.update(tensor.tobytes())
        for node in self.model.graph:
            inputs = [value.name if value else None for value in node.inputs]
            attributes = sorted((key, str(value)) for key, value in node.attributes.items())
            outputs = [value.name for value in node.outputs]
            digest.update(repr((node.domain, node.op_type, inputs, attributes, outputs)).encode())
        return digest.hexdigest()

    @property
    def attentions(self) -> int:
        """Attention layers of the graph that must be fused."""
        return sum(
            node.op_type.endswith("Attention") and "TRT_decomposable" not in node.attributes
            for node in self.model.graph
        )


class _Functional(nn.Module):
    """A stage module without side effects: states come in and go out."""

    def __init__(self, stage: PackageModule, inputs: int) -> None:
        super().__init__()
        self.stage, self.inputs = stage, inputs
        self.state_names = list(stage.states("meta"))

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
        inputs, values = flat[: self.inputs], flat[self.inputs :]
        states = {name: t.clone() for name, t in zip(self.state_names, values, strict=True)}
        keywords = {"states": states} if states else {}
        results = self.stage(*inputs, **keywords)
        return (*as_tuple(results), *(states[name] for name in self.state_names))


def export_stage(planned: PlannedPackage, weights: Mapping[str, Tensor]) -> OnnxStage:
    """Export a planned package whose weights are part of it.

    Args:
        weights: every tensor that the package bakes in.
    Raises:
        ExportError: the exporter failed, or an input is not used.
    """
    flat = planned.module
    module = _Functional(with_weights(planned, weights), flat.inputs)
    states = flat.inputs + flat.outputs  # index of the first state among the arguments
    indices = [*range(flat.inputs), *range(states, states + len(module.state_names))]
    # One distinct tensor an input: a tensor passed twice would become one input.
    example = tuple(_zeros(planned.arguments[index]) for index in indices)
    inputs = [f"in.{i}" for i in range(flat.inputs)] + [f"state.{s}" for s in module.state_names]
    outputs = [f"out.{i}" for i in range(flat.outputs)] + [f"new.{s}" for s in module.state_names]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
            )
    except Exception as error:  # the exporter's errors have no common base
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ExportError(reason[0] if reason else type(error).__name__) from error
    assert program is not None
    optimize_ir(program.model, should_fold=_may_fold)
    _rename_weights(program.model, planned.baked)
    _mark_attention(program.model)
    return _bind(program.model, planned, indices)


def _zeros(spec) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    return torch.empty_strided(spec.shape, spec.stride, dtype=dtype).zero_()


def _may_fold(node: ir.Node) -> bool | None:
    """Keep weights out of constant folding, which would give what it makes an anonymous name."""
    inputs = (value for value in node.inputs if value is not None)
    if any(value.is_initializer() and str(value.name).startswith(_PREFIX) for value in inputs):
        return False
    return None


def _rename_weights(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give the initialisers the names that the engine's weights have."""
    initializers = model.graph.initializers
    for name in [name for name in initializers if name.startswith(_PREFIX)]:
        value = initializers.pop(name)
        own = name.removeprefix(_PREFIX)
        value.name = names.get(own, own)
        initializers[value.name] = value


def _mark_attention(model: ir.Model) -> None:
    """Let TensorRT decompose the attention that it has no kernel for: float32, and wide heads."""
    for node in model.graph:
        if node.op_type not in ("Attention", "TRT_Attention"):
            continue
        query = node.inputs[0]
        assert query is not None and query.shape is not None
        half = query.dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
        if not half or query.shape[-1] not in FUSED_HEAD_DIMS:
            node.attributes["TRT_decomposable"] = ir.AttrInt64("TRT_decomposable", 1)


def _bind(model: ir.Model, planned: PlannedPackage, indices: list[int]) -> OnnxStage:
    """Tell the kinds of inputs and outputs apart; drop states that are not read or not written."""
    bound = OnnxStage(model, weights=frozenset(planned.baked.values()))
    graph, flat = model.graph, planned.module
    given = list(graph.inputs)
    for value, index in zip(given, indices, strict=True):
        assert value.name is not None
        if value.uses() or value.is_graph_output():
            continue
        if index < flat.inputs:
            raise ExportError(f"input {index} ({planned.arguments[index].shape}) is not used")
        graph.inputs.remove(value)
    for position, value in reversed(list(enumerate(graph.outputs))):
        if value.is_graph_input():  # a state that stays as it is
            del graph.outputs[position]
    for value, index in zip(given, indices, strict=True):
        if value.uses():
            bound.inputs.append(Binding(str(value.name), index))
        elif value in graph.inputs:
            graph.inputs.remove(value)
    names = {f"out.{i}": flat.inputs + i for i in range(flat.outputs)}
    first = flat.inputs + flat.outputs
    names |= {f"new.{name}": first + i for i, name in enumerate(flat.state_names)}
    for value in graph.outputs:
        node, binding = value.producer(), Binding(str(value.name), names[str(value.name)])
        if node is not None and node.op_type == "TensorScatter":
            bound.caches.append(binding)
        elif binding.argument >= first or binding.argument - flat.inputs in planned.overwrites:
            bound.banks.append(binding)
        else:
            bound.outputs.append(binding)
    for binding in (*bound.inputs, *bound.outputs, *bound.caches, *bound.banks):
        spec = planned.arguments[binding.argument]
        if len(spec.shape) == 4 and spec.stride[1] == 1 and spec.shape[1] > 1:
            bound.channels_last.add(binding.tensor)
    return bound
