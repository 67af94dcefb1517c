"""Tiny ONNX classifiers as edgeda exports them for TensorRT: fp32, fp16 with fp32 at both ends, int8 as Q/DQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeda.runtime.manifest import METADATA_KEY, Manifest
from edgeda.runtime.preprocessing import Preprocessing

CLASSES = ("bike", "bottle", "mug", "phone")
SIZE = 8
COMPUTE_LAYERS = 2
"""A convolution and a matrix product."""


def manifest(precision: str = "fp32", batch: tuple[int, int | None] = (1, None)) -> Manifest:
    return Manifest(
        classes=CLASSES,
        preprocessing=Preprocessing(SIZE, "squash", 1.0),
        architecture="tiny",
        precision=precision,
        batch=batch,
        source_run="demo",
        parity={"max_abs_error": 1e-6},
    )


def write_onnx(
    path: Path,
    precision: str = "fp32",
    batch: int | None = None,
    zero_point: int = 0,
    quantized: type[np.int8] | type[np.uint8] = np.int8,
    says: Manifest | None = None,
) -> Path:
    """Write `path`: Conv, ReLU, global average, Gemm; `batch` None leaves the batch open."""
    random = np.random.default_rng(0)
    kind = np.float16 if precision == "fp16" else np.float32
    weights = {
        "kernel": random.normal(size=(5, 3, 3, 3)).astype(kind),
        "kernel_bias": np.zeros(5, kind),
        "dense": random.normal(size=(len(CLASSES), 5)).astype(kind),
        "dense_bias": np.zeros(len(CLASSES), kind),
    }
    nodes = []

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def quantize(value: str, axis: int | None = None) -> str:
        if precision != "int8":
            return value
        count = () if axis is None else (len(weights[value]),)
        weights[f"{value}_scale"] = np.full(count, 0.02, np.float32)
        weights[f"{value}_zero"] = np.full(count, zero_point, quantized)
        around = [f"{value}_scale", f"{value}_zero"]
        extra = {} if axis is None else {"axis": axis}
        node("QuantizeLinear", [value, *around], f"{value}_q", **extra)
        return node("DequantizeLinear", [f"{value}_q", *around], f"{value}_dq", **extra)

    taken = "images"
    if precision == "fp16":
        taken = node("Cast", [taken], "images_half", to=TensorProto.FLOAT16)
    node("Conv", [quantize(taken), quantize("kernel", 0), "kernel_bias"], "features", pads=[1, 1, 1, 1])
    node("Relu", ["features"], "active")
    node("GlobalAveragePool", ["active"], "pooled")
    node("Flatten", ["pooled"], "flat")
    last = "logits_half" if precision == "fp16" else "logits"
    node("Gemm", [quantize("flat"), quantize("dense", 0), "dense_bias"], last, transB=1)
    if precision == "fp16":
        node("Cast", [last], "logits", to=TensorProto.FLOAT)
    first = "batch" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [first, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [first, len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: (says or manifest(precision)).embedded()})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path
