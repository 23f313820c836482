"""Running exported stages in onnxruntime on the CPU: the check of what TensorRT is given."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from sdrt.export.tensorrt.onnx import OnnxStage
from sdrt.kernels.errors import SdrtError

TOLERANCE = 1e-4
"""Relative, in float32; what the golden cases allow between machines."""


class CheckError(SdrtError):
    """A stage computes something else in onnxruntime than the eager module does."""


def standard_model(stage: OnnxStage) -> ir.Model:
    """Return a copy of the graph without what only TensorRT knows; the weights are shared.

    Its attention becomes ONNX's own, with the valid length as ``nonpad_kv_seqlen``.
    """
    model = stage.model.clone()
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        node.attributes.pop("TRT_decomposable", None)
        if node.op_type == "TRT_Attention":
            _to_standard(model.graph, node, wide)
        elif node.op_type == "Attention" and len(node.inputs) > 3 and node.inputs[3] is not None:
            _expand_mask(model.graph, node, wide)
    model.opset_imports.pop("trt", None)
    return model


def _to_standard(graph: ir.Graph, node: ir.Node, wide: dict[ir.Value, ir.Value]) -> None:
    """Replace TensorRT's attention, whose valid length is int32, by ONNX's."""
    query, key, value, _, _, valid = node.inputs
    assert valid is not None
    if valid not in wide:
        cast = ir.node("Cast", [valid], {"to": ir.DataType.INT64})
        cast.outputs[0].name = f"{valid.name}.int64"
        graph.insert_before(node, cast)
        wide[valid] = cast.outputs[0]
    inputs = [query, key, value, None, None, None, wide[valid]]
    standard = ir.node("Attention", inputs, {"scale": 1.0})
    graph.insert_before(node, standard)
    old, new = node.outputs[0], standard.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)


def _expand_mask(graph: ir.Graph, node: ir.Node, wide: dict[ir.Value, ir.Value]) -> None:
    """Repeat a mask for every query: onnxruntime does not broadcast it."""
    query, mask = node.inputs[0], node.inputs[3]
    assert query is not None and query.shape is not None and mask is not None
    if mask not in wide:
        rows = np.array([1, 1, query.shape.numpy()[2], 1])
        shape = ir.Value(name=f"{mask.name}.rows", const_value=ir.tensor(rows))
        graph.register_initializer(shape)
        expand = ir.node("Expand", [mask, shape])
        expand.outputs[0].name = f"{mask.name}.full"
        graph.insert_before(node, expand)
        wide[mask] = expand.outputs[0]
    node.replace_input_with(3, wide[mask])


class OrtProgram:
    """An exported stage behind the interface of a package, run by onnxruntime on the CPU."""

    def __init__(self, stage: OnnxStage) -> None:
        """Load the graph. Its weights go through a file, so models may have more than 2 GB."""
        import onnxruntime

        self.stage = stage
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stage.onnx"
            ir.save(standard_model(stage), path, external_data="weights")
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def run(self, arguments: Sequence[Tensor]) -> None:
        """Run once on CPU tensors; results and new states are written into ``arguments``."""
        stage = self.stage
        feed = {
            binding.tensor: arguments[binding.argument].contiguous().numpy()
            for binding in stage.inputs
        }
        written = [*stage.outputs, *stage.caches, *stage.banks]
        results = self.session.run([binding.tensor for binding in written], feed)
        for binding, result in zip(written, results, strict=True):
            arguments[binding.argument].copy_(torch.from_numpy(result))
