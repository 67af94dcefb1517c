"""Tiny ONNX classifiers whose costs are counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALL_MACS = 8 * 8 * 8 * 27 + 40
SMALL_PARAMETERS = 8 * 27 + 8 + 40 + 5


def weights(name: str, *shape: int, dtype: type = np.float32) -> onnx.TensorProto:
    """An initializer of ones."""
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def write_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    images: list[int | str | None],
    logits: list[int | str] | None = None,
) -> Path:
    """A model from `images` to `logits`, opset 17."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, images)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits or ["batch", 5])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def small_classifier(path: Path, images: list[int | str | None] | None = None, bias: float = 0.0) -> Path:
    """Conv 3 -> 8 (3 x 3, stride 2, padding 1), global pooling, Gemm 8 -> 5: 8 * 8 * 8 * 27 + 40 MACs at 16 px."""
    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w2", "b2"], ["logits"], transB=1),
    ]
    last = numpy_helper.from_array(np.full(5, bias, np.float32), "b2")
    initializers = [weights("w1", 8, 3, 3, 3), weights("b1", 8), weights("w2", 5, 8), last]
    return write_onnx(path, nodes, initializers, images or ["batch", 3, 16, 16])
