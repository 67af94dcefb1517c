"""Where the cost is: arithmetic, parameters and activations of each layer of a network or an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeda.errors import require
from edgeda.profiling.complexity import counting
from edgeda.profiling.onnx_graph import WEIGHT_POSITIONS, OnnxGraph, inferred_graph, node_macs

if TYPE_CHECKING:
    from torch import nn

_Weight = tuple[str, int, int]
"""Name, elements and ONNX type of an initializer."""
_PASSING = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose")
"""Operators through which a weight is still that weight."""
_UINT8 = 2
"""onnx.TensorProto.UINT8, which QuantizeLinear gives without a zero point."""
_FUSED = ("Norm", "Pool", "Act")
"""Kinds of modules that an engine merges into the layer before them."""


@dataclass(frozen=True)
class Layer:
    """One layer, for one image."""

    name: str
    kind: str
    """The class of a module, the operator of a node."""
    macs: int
    """Multiply-accumulates."""
    params: int
    """Elements of weights and biases."""
    inputs: int
    """Elements it takes, without weights."""
    activations: int
    """Elements it makes."""
    precision: str
    """Of its weights: `fp32`, `fp16`, `bf16` or `int8`."""

    @property
    def fused(self) -> bool:
        """Whether an engine merges it into another layer: normalization, pooling and activation functions."""
        return any(word in self.kind for word in _FUSED)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def torch_layers(network: nn.Module, input_size: int) -> list[Layer]:
    """Layers of a network that take arithmetic, in order; MACs counted by fvcore, and sizes seen in a forward pass.

    What a module computes itself beside its children (attention) is a line under its own name. Their
    MACs add up to those of `torch_complexity`. Raises InputError when the network does not take such images.
    """
    torch = require("torch", "train", "counting a network's arithmetic")
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def seen(module: nn.Module, taken: Any, made: Any) -> None:
        sizes[module] = (_elements(torch, taken), _elements(torch, made))

    with counting(network, input_size) as analysis:
        totals: Mapping[str, int] = analysis.by_module()
        hooks = [module.register_forward_hook(seen) for module in network.modules()]
        try:
            example = next(network.parameters())
            network(torch.zeros(1, 3, input_size, input_size, dtype=example.dtype, device=example.device))
        finally:
            for hook in hooks:
                hook.remove()
    layers = []
    for name, module in network.named_modules():
        children = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        own = totals.get(name, 0) - sum(totals.get(child, 0) for child in children)
        if own > 0:
            taken, made = sizes.get(module, (0, 0))
            params = sum(parameter.numel() for parameter in module.parameters(recurse=not children))
            kind = type(module).__name__
            layers.append(Layer(name or "(network)", kind, round(own), params, taken, made, "fp32"))
    return layers


def _elements(torch: Any, value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return int(value.numel())
    return sum(_elements(torch, item) for item in value) if isinstance(value, (list, tuple)) else 0


def onnx_layers(path: Path, input_size: int | None = None) -> list[Layer]:
    """Nodes of an ONNX graph that take arithmetic, in order; their MACs add up to those of `onnx_complexity`.

    Raises InputError for a file that is no ONNX model, or whose shapes cannot be inferred.
    """
    graph = inferred_graph(path, input_size)
    types = require("onnx", "train", "reading an ONNX graph").TensorProto
    names = {
        types.FLOAT: "fp32", types.DOUBLE: "fp32", types.FLOAT16: "fp16", types.BFLOAT16: "bf16",
        types.INT8: "int8", types.UINT8: "int8",
    }  # fmt: skip
    weights = {
        tensor.name: (tensor.name, math.prod(tensor.dims), tensor.data_type) for tensor in graph.graph.initializer
    }
    makers = {output: node for node in graph.graph.node for output in node.output}
    layers = []
    for node in graph.graph.node:
        macs = node_macs(node, graph)
        if not macs:
            continue
        parameters = [_parameter(name, weights, makers) for name in _operands(node)]
        params = sum(parameter[1] for parameter in parameters if parameter)
        position = WEIGHT_POSITIONS[node.op_type]
        weight = _parameter(node.input[position], weights, makers)
        taken = sum(_size(name, graph) for name in _operands(node) if _parameter(name, weights, makers) is None)
        layers.append(
            Layer(
                _name(node, weight), node.op_type, macs // graph.batch, params, taken // graph.batch,
                _size(node.output[0], graph) // graph.batch, names.get(weight[2], "fp32") if weight else "fp32",
            )
        )  # fmt: skip
    return layers


def _operands(node: Any) -> list[str]:
    """Names of the values that are multiplied or added: without scales and zero points."""
    positions: Sequence[int] = {"QLinearConv": (0, 3, 8), "QLinearMatMul": (0, 3)}.get(
        node.op_type, (0, 1) if node.op_type.endswith("Integer") else range(len(node.input))
    )
    return [node.input[position] for position in positions if position < len(node.input) and node.input[position]]


def _name(node: Any, weight: _Weight | None) -> str:
    """Of the module that the weight came from, where it tells: exporters number their nodes."""
    told = weight[0].partition(".weight")[0] if weight else ""
    return told.removeprefix("network.") if "." in told else node.name or str(node.output[0])


def _parameter(name: str, weights: Mapping[str, _Weight], makers: Mapping[str, Any]) -> _Weight | None:
    """Name, elements and type of an initializer, also where it is cast or dequantized on its way; None: not one.

    Where a graph quantizes it, the type is that of the integers: an engine does so once, when it is built.
    """
    kind = None
    for _ in range(5):
        if name in weights:
            found = weights[name]
            return found if kind is None else (*found[:2], kind)
        node = makers.get(name)
        if node is None or node.op_type not in _PASSING:
            return None
        if node.op_type == "QuantizeLinear" and kind is None:
            zero_point = weights.get(node.input[2]) if len(node.input) > 2 else None
            kind = zero_point[2] if zero_point else _UINT8
        name = node.input[0]
    return None


def _size(name: str, graph: OnnxGraph) -> int:
    return math.prod(graph.shapes.get(name, (0,)))
