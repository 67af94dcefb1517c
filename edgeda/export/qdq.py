"""An int8 graph: QuantizeLinear and DequantizeLinear around layers that gain from int8, as each consumer wants them.

`trt`   signed and symmetric (S8S8, zero point 0) activations before every convolution and product and before the
        residual input of a sum; weights per channel, as a float constant with its own Q/DQ pair, which every TensorRT
        from 8 on reads; biases stay in fp32. TensorRT takes uint8 for int8 without a word, hence never that.
`x86`   unsigned activations with a zero point (U8S8) around every layer that ONNX Runtime has an int8 kernel for;
        weights per channel as int8, biases as int32. S8S8 is slower than fp32 there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, require
from edgeda.export.calibration import Ranges
from edgeda.export.graph import initializers, sort_nodes, to_tensor

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Scheme:
    """How a consumer wants int8."""

    name: str
    words: str
    unsigned: bool
    """Activations uint8 with a zero point; else int8, symmetric."""
    weight_pairs: bool
    """Weights as float with a Q/DQ pair; else as int8 with a DQ."""
    integer_bias: bool
    around: tuple[str, ...]
    """Other operators that run in int8 between Q/DQ on every side."""

    def parameters(self, low: float, high: float) -> tuple[np.float32, NDArray[Any]]:
        """Scale and zero point for values of [low, high]; the range always holds zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        if not self.unsigned:
            return np.float32(max(-low, high) / 127 or 1.0), np.asarray(0, np.int8)
        scale = np.float32((high - low) / 255 or 1.0)
        return scale, np.asarray(np.clip(np.round(-low / float(scale)), 0, 255), np.uint8)


SCHEMES = {
    "trt": Scheme("trt", "S8S8 symmetric, weights per channel, biases in fp32", False, True, False, ()),
    "x86": Scheme(
        "x86", "U8S8, weights per channel, biases in int32", True, False, True, ("Add", "MaxPool", "AveragePool")
    ),
}


@dataclass(frozen=True)
class Layer:
    """A convolution or product with constant weights: its node, its name in words, and the axis of output channels."""

    node: str
    name: str
    input: str
    weight: str
    axis: int


def quantizable(model: ModelProto) -> list[Layer]:
    """The layers that can run in int8, in the order of the graph."""
    shapes = {value.name: len(value.dims) for value in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in _WEIGHTED and node.input[1] in shapes:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            axis = 0 if node.op_type == "Conv" or transposed else shapes[node.input[1]] - 1
            words = node.input[1].removeprefix("network.").removesuffix(".weight")
            found.append(Layer(node.name, words, node.input[0], node.input[1], axis))
    if not found:
        raise InputError("the network has no layer that can be quantized")
    return found


def activations(model: ModelProto, scheme: Scheme, kept: Iterable[str] = ()) -> set[str]:
    """The tensors that are quantized when the layers `kept` (by node) stay in higher precision."""
    return {name for names in _readers(model, scheme, frozenset(kept)).values() for name in names}


def quantize(model: ModelProto, ranges: Ranges, scheme: Scheme, kept: Iterable[str] = ()) -> ModelProto:
    """A copy of an fp32 graph with explicit Q/DQ; `ranges` are those of `activations`, `kept` stay as they are."""
    helper = require("onnx.helper", "train", "quantizing a model")
    made = copy.deepcopy(model)
    graph = made.graph
    readers = _readers(model, scheme, frozenset(kept))
    layers = {layer.node: layer for layer in quantizable(model) if layer.node in readers}
    constants: dict[str, NDArray[Any]] = {}
    pairs: list[NodeProto] = []
    scales: dict[str, np.float32] = {}
    for tensor in sorted({name for names in readers.values() for name in names}):
        scales[tensor], zero = scheme.parameters(*ranges[tensor])
        pairs += _pair(helper, constants, tensor, np.asarray(scales[tensor]), zero, None)
    done: dict[str, Any] = {}
    gone: set[str] = set()
    weights = initializers(graph, [layer.weight for layer in layers.values()])
    for node in graph.node:
        inputs = readers.get(node.name, [])
        node.input[:] = [f"{name}_dequantized" if name in inputs else name for name in node.input]
        layer = layers.get(node.name)
        if layer is None:
            continue
        weight = weights[layer.weight]
        if layer.weight not in done:
            done[layer.weight] = channel_scales(weight, layer.axis)
            zero = np.zeros(weight.shape[layer.axis], np.int8)
            if scheme.weight_pairs:
                pairs += _pair(helper, constants, layer.weight, done[layer.weight], zero, layer.axis)
            else:
                whole = _integers(weight, done[layer.weight], layer.axis)
                pairs += _dequantized(helper, constants, layer.weight, whole, done[layer.weight], zero, layer.axis)
                gone.add(layer.weight)
        node.input[1] = f"{layer.weight}_dequantized"
        if scheme.integer_bias and len(node.input) > 2 and node.op_type != "MatMul":
            bias = node.input[2]
            values = initializers(graph, [bias]).get(bias)
            if values is None or values.ndim != 1:
                continue
            scale = (scales[layer.input] * done[layer.weight]).astype(np.float32)
            limit = 2.0**31 - 1
            whole = np.clip(np.round(values / scale.astype(np.float64)), -limit, limit).astype(np.int32)
            name = f"{node.name}_bias"
            pairs += _dequantized(helper, constants, name, whole, scale, np.zeros(len(whole), np.int32), 0)
            node.input[2] = f"{name}_dequantized"
            gone.add(bias)
    nodes = [*pairs, *graph.node]
    read = {name for node in nodes for name in node.input}
    kept_constants = [value for value in graph.initializer if value.name not in gone or value.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept_constants)
    graph.initializer.extend(to_tensor(name, value) for name, value in constants.items())
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    sort_nodes(graph)
    return made


def channel_scales(weight: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Largest magnitude of each channel over 127, and 1 for a channel of zeros."""
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    return np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)


def _readers(model: ModelProto, scheme: Scheme, kept: frozenset[str]) -> dict[str, list[str]]:
    """By node, which of its inputs it reads from Q/DQ."""
    constants = {value.name for value in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {layer.node: [layer.input] for layer in quantizable(model) if layer.node not in kept}
    for node in model.graph.node:
        if any(name in constants for name in node.input) or node.op_type not in ("Add", *scheme.around):
            continue
        layers = [_layer_before(name, makers) for name in node.input]
        if any(before in kept for before in layers):
            continue
        if node.op_type in scheme.around:
            found[node.name] = list(node.input)
        elif node.op_type == "Add" and all(layers) and found:
            # the sum is fused into the convolution that makes one side; the other side comes in as int8
            direct = [name for name in node.input if name in makers and makers[name].op_type == "Conv"]
            if direct:
                found[node.name] = [name for name in node.input if name != direct[0]]
    return found


def _layer_before(name: str, makers: dict[str, NodeProto]) -> str:
    """The node that made a tensor, seen through activations and pooling; its own name where there is none."""
    while name in makers and makers[name].op_type in ("Relu", "MaxPool", "AveragePool", "Clip"):
        name = makers[name].input[0]
    return str(makers[name].name) if name in makers else name


def _pair(
    helper: Any,
    constants: dict[str, NDArray[Any]],
    name: str,
    scale: NDArray[Any],
    zero: NDArray[Any],
    axis: int | None,
) -> list[NodeProto]:
    constants[f"{name}_scale"], constants[f"{name}_zero"] = scale, zero
    options = {} if axis is None else {"axis": axis}
    parameters = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_quantized"], f"{name}_quantize", **options),
        helper.make_node(
            "DequantizeLinear", [f"{name}_quantized", *parameters], [f"{name}_dequantized"], f"{name}_dequantize",
            **options,
        ),
    ]  # fmt: skip


def _dequantized(
    helper: Any, constants: dict[str, NDArray[Any]], name: str, whole: NDArray[Any], scale: NDArray[Any],
    zero: NDArray[Any], axis: int,
) -> list[NodeProto]:  # fmt: skip
    constants[f"{name}_quantized"] = whole
    return _pair(helper, constants, name, scale, zero, axis)[1:]


def _integers(weight: NDArray[Any], scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.round(weight / scales.reshape(shape)), -127, 127).astype(np.int8)
