"""Explicit FP8 in an exported graph: quantise and dequantise nodes around chosen linears."""

from collections.abc import Mapping

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from sdrt.export.quantise.fp8 import input_scale, quantise_weight
from sdrt.export.tensorrt.onnx import ExportError, OnnxStage


def insert_fp8(stage: OnnxStage, largest: Mapping[str, float]) -> None:
    """Quantise linears of a stage in place: static scale a tensor in, a scale a channel of weight.

    A weight keeps its name and becomes e4m3. The scales are named after it.

    Args:
        largest: weight -> the largest value that its linear's input had in calibration.
    Raises:
        ExportError: the graph has no such linear.
    """
    graph, pending = stage.model.graph, dict(largest)
    for node in list(graph):
        given = node.inputs[1] if node.op_type == "MatMul" else None
        transposed = given.producer() if given is not None else None
        if transposed is None or (weight := transposed.inputs[0]) is None:
            continue
        if weight.name not in pending or len(weight.uses()) != 1:
            continue
        _quantise(graph, node, transposed, weight, pending.pop(weight.name))
    if pending:
        raise ExportError(f"no linear of its own has the weight {next(iter(pending))}")
    stage.fp8_linears = len(largest)


def _quantise(
    graph: ir.Graph, node: ir.Node, transposed: ir.Node, weight: ir.Value, largest: float
) -> None:
    name = str(weight.name)
    assert weight.const_value is not None and node.inputs[0] is not None
    values = torch.from_dlpack(weight.const_value.raw).detach()
    quantised, scales = quantise_weight(values)
    del graph.initializers[name]
    weight.name = f"{name}.unused"
    packed = _constant(graph, name, quantised)
    weight_scale = _constant(graph, f"{name}.scale", scales)
    scale = _constant(graph, f"{name}.input_scale", input_scale(largest, values.dtype))
    zero = _constant(graph, f"{name}.input_zero", torch.zeros((), dtype=torch.float8_e4m3fn))

    back = _node("DequantizeLinear", [packed, weight_scale], f"{name}.real", {"axis": 0})
    rounded = _node("QuantizeLinear", [node.inputs[0], scale, zero], f"{name}.input")
    real = _node("DequantizeLinear", [rounded.outputs[0], scale], f"{name}.input_real")
    graph.insert_before(transposed, [back])
    graph.insert_before(node, [rounded, real])
    transposed.replace_input_with(0, back.outputs[0])
    node.replace_input_with(0, real.outputs[0])


def _constant(graph: ir.Graph, name: str, tensor: Tensor) -> ir.Value:
    value = ir.Value(name=name, const_value=TorchTensor(tensor.contiguous(), name=name))
    graph.register_initializer(value)
    return value


def _node(kind: str, inputs: list, name: str, attributes: dict | None = None) -> ir.Node:
    node = ir.node(kind, inputs, attributes or {}, name=name)
    node.outputs[0].name = f"{name}.out"
    return node
