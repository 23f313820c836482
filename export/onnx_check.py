"""Running exported stages in onnxruntime on the CPU: the check of what TensorRT is given."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from sdrt.export.onnx_export import OnnxStage


def standard_model(stage: OnnxStage) -> onnx.ModelProto:
    """Return a copy of the graph without what only TensorRT knows.

    Its attention becomes ONNX's own, with the valid length as ``nonpad_kv_seqlen``.
    """
    model = ir.to_proto(stage.model)
    queries: dict[str | None, int] = {}
    for known in stage.model.graph:
        query = known.inputs[0] if known.op_type == "Attention" else None
        if query is not None and query.shape is not None:
            queries[known.outputs[0].name] = query.shape.numpy()[2]
    nodes, lengths = [], set()
    for node in model.graph.node:
        if node.op_type == "Attention" and len(node.input) > 3 and node.input[3]:
            # onnxruntime does not broadcast a mask over the queries.
            rows, mask = queries[node.output[0]], node.input[3]
            shape = onnx.numpy_helper.from_array(np.array([1, 1, rows, 1]), f"{mask}.rows")
            if f"{mask}.full" not in lengths:
                lengths.add(f"{mask}.full")
                model.graph.initializer.append(shape)
                nodes.append(
                    onnx.helper.make_node("Expand", [mask, f"{mask}.rows"], [f"{mask}.full"])
                )
            node.input[3] = f"{mask}.full"
        own = [a for a in node.attribute if a.name != "TRT_decomposable"]
        if node.op_type == "TRT_Attention":
            query, key, value, _, _, valid = node.input
            wide = f"{valid}.int64"
            if valid not in lengths:
                cast = onnx.helper.make_node("Cast", [valid], [wide], to=onnx.TensorProto.INT64)
                nodes.append(cast)
                lengths.add(valid)
            inputs = [query, key, value, "", "", "", wide]
            node = onnx.helper.make_node("Attention", inputs, list(node.output), scale=1.0)
        else:
            del node.attribute[:]
            node.attribute.extend(own)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [known for known in model.opset_import if known.domain != "trt"]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


class OrtProgram:
    """An exported stage behind the interface of a package, run by onnxruntime on the CPU."""

    def __init__(self, stage: OnnxStage) -> None:
        """Load the graph; models of more than 2 GB do not fit (tests are small)."""
        import onnxruntime

        self.stage = stage
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 2
        model = standard_model(stage).SerializeToString()
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
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
