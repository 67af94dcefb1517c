"""What TensorRT has to know of an ONNX file before it is asked to build, and what it must not be given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeda.errors import InputError, one_line, require
from edgeda.runtime.backends import read_manifest
from edgeda.runtime.manifest import Manifest

_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class EngineSource:
    """An ONNX file of edgeda's that TensorRT can take."""

    path: Path
    manifest: Manifest
    precision: str
    """`int8` with Q/DQ nodes, `fp16` with half-precision weights, else `fp32`: from the graph, not the manifest."""
    half: bool
    """Whether it holds half-precision weights: an int8 file may, in the layers that are not quantized."""
    input_name: str
    input_dims: tuple[int | None, ...]
    """None where the file leaves a size open."""

    @property
    def batch(self) -> tuple[int, int | None]:
        """Least and most images in a call, None without a limit."""
        fixed = self.input_dims[0]
        return self.manifest.batch if fixed is None else (fixed, fixed)


def read_source(path: Path) -> EngineSource:
    """Look at an ONNX file. InputError when it is none of ours, or quantized in a way TensorRT takes wrongly.

    TensorRT reads uint8 values as int8 without a word, needs zero points of 0, and takes no quantized biases.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(f"{path} carries no edgeda manifest; export the run again with: edgeda export RUN --trt")
    onnx = require("onnx", "train", "preparing a TensorRT engine")
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's DecodeError has moved between versions
        raise InputError(f"{path} cannot be read as ONNX: {one_line(error)}; export it again") from error
    weights = {tensor.name: tensor for tensor in graph.initializer}
    images = [value for value in graph.input if value.name not in weights]
    if len(images) != 1:
        raise InputError(f"{path} has {len(images)} inputs; TensorRT engines of edgeda take one batch of images")
    check_quantization(path, onnx, graph)
    quantized = any(node.op_type in _QUANTIZING for node in graph.node)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 and len(tensor.dims) > 1 for tensor in graph.initializer)
    dims = images[0].type.tensor_type.shape.dim
    return EngineSource(
        path,
        manifest,
        "int8" if quantized else "fp16" if half else "fp32",
        half,
        images[0].name,
        tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims),
    )


def check_quantization(path: Path, onnx: Any, graph: Any) -> None:
    """InputError for a graph quantized in a way that TensorRT takes wrongly."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    remedy = "export it for TensorRT with: edgeda export RUN --onnx --precision int8 --for trt"
    for node in graph.node:
        if node.op_type not in _QUANTIZING:
            continue
        zero_point = weights.get(node.input[2]) if len(node.input) > 2 else None
        if zero_point is None or zero_point.data_type == onnx.TensorProto.UINT8:
            raise InputError(f"{path} is quantized to uint8, which TensorRT reads as int8 without a word; {remedy}")
        if zero_point.data_type == onnx.TensorProto.INT32:
            raise InputError(f"{path} has quantized biases, which TensorRT does not take; {remedy}")
        if onnx.numpy_helper.to_array(zero_point).any():
            raise InputError(f"{path} is quantized with zero points other than 0; {remedy}")
