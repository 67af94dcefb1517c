"""How much arithmetic a network takes per image, and how many parameters it has.

GMACs are 10^9 multiply-accumulates of one image; GFLOPs are twice that (a multiply and an add). The
papers' "GFLOPS" are GMACs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeda.errors import InputError, from_os_error, one_line, require

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]

_WEIGHT_POSITIONS = {  # the operators that are counted, and which of their inputs is the weight
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
class Complexity:
    """Cost of one image: `gmacs`, `gflops` = 2 x `gmacs`, and `params_m`, millions of parameters."""

    gmacs: float
    gflops: float
    params_m: float


def _complexity(macs: float, parameters: int) -> Complexity:
    return Complexity(gmacs=macs / 1e9, gflops=2 * macs / 1e9, params_m=parameters / 1e6)


def torch_complexity(network: nn.Module, input_size: int) -> Complexity:
    """Complexity of a network taking images `(B, 3, input_size, input_size)`, counted by fvcore.

    fvcore adds batch normalization (unfused) and average pooling to convolutions, linear layers and
    matrix products: 1.819 GMACs for a ResNet-18 of 1000 classes at 224 px, of which 1.814 are
    convolutions. Fused attention is added here. Every parameter counts, buffers do not.
    Raises InputError when the network does not take such images.
    """
    torch = require("torch", "train", "counting a network's arithmetic")
    modes = [(module, module.training) for module in network.modules()]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # fvcore scripts functions as it is imported, and traces the network
        fvcore = require("fvcore.nn", "train", "counting a network's arithmetic")
        example = next(network.parameters())
        images = torch.zeros(1, 3, input_size, input_size, dtype=example.dtype, device=example.device)
        try:
            analysis = fvcore.FlopCountAnalysis(network.eval(), images)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
            macs = float(analysis.total())
        except (RuntimeError, AssertionError, ValueError) as error:
            size = f"{input_size} x {input_size}"
            raise InputError(f"the network does not take images of {size}: {one_line(error)}") from error
        finally:
            for module, training in modes:
                module.training = training
    return _complexity(macs, sum(parameter.numel() for parameter in network.parameters()))


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Queries `(..., N, D)` times keys `(..., M, D)`, and the weights times values of the same size."""
    queries: list[int] = inputs[0].type().sizes()
    keys: list[int] = inputs[1].type().sizes()
    return 2 * math.prod(queries) * keys[-2]


def onnx_complexity(path: Path, input_size: int | None = None) -> Complexity:
    """Complexity per image of an ONNX classifier, from its graph alone: no torch, nothing is run.

    Counts convolutions, transposed convolutions, Gemm and matrix products, quantized or not, without
    biases; exported batch normalization is folded into them. Parameters are the elements of
    floating-point initializers and of the integers that stand for weights or biases; quantization
    scales, zero points, shapes and running statistics are not counted.
    `input_size` stands in for a height or width that the file leaves open.
    Raises InputError for a file that is no ONNX model, or whose shapes cannot be inferred.
    """
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
    graph = inferred.graph
    shapes = _shapes(graph)
    macs = sum(_node_macs(node, shapes, path) for node in graph.node)
    return _complexity(macs / batch, _parameters(onnx, graph))


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


def _node_macs(node: Any, shapes: dict[str, Shape], path: Path) -> int:
    if node.op_type not in _WEIGHT_POSITIONS:
        return 0
    names = (node.input[0], node.input[_WEIGHT_POSITIONS[node.op_type]], node.output[0])
    taken, weight, made = (shapes.get(name) for name in names)
    if taken is None or weight is None or made is None:
        raise InputError(f"{path}: the shapes around the {node.op_type} '{node.name}' cannot be inferred")
    if node.op_type == "ConvTranspose":  # weight (C, K/groups, h, w): each pixel taken meets every K/groups x h x w
        return math.prod(taken) * math.prod(weight[1:])
    if "Conv" in node.op_type:  # weight (K, C/groups, h, w): each value made took C/groups x h x w
        return math.prod(made) * math.prod(weight[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(made) * taken[0 if transposed else -1]


def _parameters(onnx: Any, graph: Any) -> int:
    types = onnx.TensorProto
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
