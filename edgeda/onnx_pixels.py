"""An ONNX graph with its preprocessing's arithmetic inside: pixels in, probabilities out. No torch."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from edgeda.errors import require
from edgeda.runtime.manifest import FLOAT_NCHW, PROBABILITIES, RAW_NHWC
from edgeda.runtime.preprocessing import Preprocessing

if TYPE_CHECKING:
    from onnx import ModelProto

NORMALIZED = "normalized_images"


def embed_preprocessing(
    model: ModelProto, preprocessing: Preprocessing, ends: tuple[str, str], pixels: str, layout: str
) -> None:
    """Put normalization before and the softmax behind a network from `ends[0]`, images, to `ends[1]`, logits.

    (pixel - 255 mean) / (255 std) by channel, then the network as it is. Its only input is then `pixels`, values from
    0 to 255 in the type and order of `layout`, and its only output PROBABILITIES.
    """
    onnx = require("onnx", "train", "a graph with its preprocessing inside")
    graph, helper, kinds = model.graph, onnx.helper, onnx.TensorProto
    images, logits = (
        copy.deepcopy(next(value for value in values if value.name == name))
        for values, name in zip((graph.input, graph.output), ends, strict=True)
    )
    for node in graph.node:
        node.input[:] = [NORMALIZED if name == images.name else name for name in node.input]
    constants = {
        "pixel_mean": 255 * np.asarray(preprocessing.mean, np.float64),
        "pixel_scale": 1 / (255 * np.asarray(preprocessing.std, np.float64)),
    }
    for name, values in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32).reshape(1, 3, 1, 1), name))
    first, before = pixels, []
    kind = images.type.tensor_type
    if layout != FLOAT_NCHW:  # the cast comes first: TensorRT takes uint8 nowhere else
        before.append(helper.make_node("Cast", [first], ["pixels_float"], "pixels_to_float", to=kinds.FLOAT))
        first = "pixels_float"
        kind.elem_type = kinds.UINT8
    if layout == RAW_NHWC:
        before.append(helper.make_node("Transpose", [first], ["pixels_nchw"], "pixels_to_nchw", perm=[0, 3, 1, 2]))
        first = "pixels_nchw"
        kind.shape.dim[1].dim_value, kind.shape.dim[3].dim_value = preprocessing.size, 3
    before += [
        helper.make_node("Sub", [first, "pixel_mean"], ["pixels_centred"], "subtract_mean"),
        helper.make_node("Mul", ["pixels_centred", "pixel_scale"], [NORMALIZED], "divide_by_std"),
    ]
    nodes = [*before, *graph.node, helper.make_node("Softmax", [logits.name], [PROBABILITIES], "softmax", axis=1)]
    images.name, logits.name = pixels, PROBABILITIES
    for field, content in ((graph.node, nodes), (graph.input, [images]), (graph.output, [logits])):
        del field[:]
        field.extend(content)
    del graph.value_info[:]
