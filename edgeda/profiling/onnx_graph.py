"""The arithmetic of an ONNX classifier, from its graph alone: no torch, nothing is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeda.errors import InputError, from_os_error, one_line, require
from edgeda.profiling.complexity import Complexity, complexity

Shape = tuple[int, ...]

WEIGHT_POSITIONS = {  # the operators that are counted, and which of their inputs is the weight
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "FusedConv": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
_WEIGHT_INPUTS = {  # where quantized arithmetic takes its weights and biases from; the rest are scales and zero points
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
}


@dataclass(frozen=True)
class OnnxGraph:
    """A graph whose shapes are known, for `batch` images."""

    path: Path
    graph: Any
    batch: int
    shapes: dict[str, Shape]


def onnx_complexity(path: Path, input_size: int | None = None) -> Complexity:
    """Complexity per image of an ONNX classifier, from its graph alone: no torch, nothing is run.

    Counts convolutions, transposed convolutions, Gemm and matrix products, quantized or not, without
    biases; exported batch normalization is folded into them. Parameters are the elements of
    floating-point initializers and of the integers that stand for weights or biases; quantization
    scales, zero points, shapes and running statistics are not counted.
    `input_size` stands in for a height or width that the file leaves open.
    Raises InputError for a file that is no ONNX model, or whose shapes cannot be inferred.
    """
    found = inferred_graph(path, input_size)
    macs = sum(node_macs(node, found) for node in found.graph.node)
    return complexity(macs / found.batch, _parameters(found.graph))


def inferred_graph(path: Path, input_size: int | None = None) -> OnnxGraph:
    """The graph of an ONNX file with the shape of every value; errors as `onnx_complexity`."""
    onnx = require("onnx", "train", "reading an ONNX graph")
    model = _load(onnx, path)
    batch = _fix_input(model, path, input_size)
    try:
        if model.functions:
            model = require("onnx.inliner", "train", "reading an ONNX graph").inline_local_functions(model)
        del model.graph.value_info[:]
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # onnx raises its own RuntimeErrors and protobuf's
        raise InputError(f"{path}: the shapes of this ONNX graph cannot be inferred: {one_line(error)}") from error
    return OnnxGraph(path, inferred.graph, batch, _shapes(inferred.graph))


def _load(onnx: Any, path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, "reading") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError has moved between versions
        raise InputError(f"{path} is not an ONNX model, or it is cut short; export it again") from error
    if not model.graph.node or not model.graph.input:
        raise InputError(f"{path} holds no ONNX graph; export it again")
    return model


def _fix_input(model: Any, path: Path, input_size: int | None) -> int:
    """Give the open dimensions of the image input a value; returns the batch that shapes will be for."""
    weights = {tensor.name for tensor in model.graph.initializer}
    images = [value for value in model.graph.input if value.name not in weights]
    dims = images[0].type.tensor_type.shape.dim if images else []
    if len(images) != 1 or len(dims) != 4:
        raise InputError(f"{path} is no image classifier: it should have one input (B, 3, H, W)")
    for axis, dim in enumerate(dims):
        if dim.dim_value > 0:
            continue
        if axis == 0:
            dim.dim_value = 1
        elif axis > 1 and input_size is not None:
            dim.dim_value = input_size
        else:
            raise InputError(f"{path} leaves dimension {axis} of its input open; say the input size")
    return int(dims[0].dim_value)


def _shapes(graph: Any) -> dict[str, Shape]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def node_macs(node: Any, found: OnnxGraph) -> int:
    """Multiply-accumulates of one node for the whole batch, 0 for what is not counted."""
    if node.op_type not in WEIGHT_POSITIONS:
        return 0
    names = (node.input[0], node.input[WEIGHT_POSITIONS[node.op_type]], node.output[0])
    taken, weight, made = (found.shapes.get(name) for name in names)
    if taken is None or weight is None or made is None:
        raise InputError(f"{found.path}: the shapes around the {node.op_type} '{node.name}' cannot be inferred")
    if node.op_type == "ConvTranspose":  # weight (C, K/groups, h, w): each pixel taken meets every K/groups x h x w
        return math.prod(taken) * math.prod(weight[1:])
    if "Conv" in node.op_type:  # weight (K, C/groups, h, w): each value made took C/groups x h x w
        return math.prod(made) * math.prod(weight[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(made) * taken[0 if transposed else -1]


def _parameters(graph: Any) -> int:
    types = require("onnx", "train", "reading an ONNX graph").TensorProto
    floating = {types.FLOAT, types.FLOAT16, types.BFLOAT16, types.DOUBLE}
    weights: set[str] = set()
    others: set[str] = set()
    for node in graph.node:
        counted = _WEIGHT_INPUTS.get(node.op_type)
        if counted is not None:
            weights.update(node.input[position] for position in counted if position < len(node.input))
            others.update(name for position, name in enumerate(node.input) if position not in counted)
        elif node.op_type == "QuantizeLinear":
            others.update(node.input[1:])
        elif node.op_type == "BatchNormalization":
            others.update(node.input[3:])
    return sum(
        math.prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.name in weights or (tensor.data_type in floating and tensor.name not in others)
    )
