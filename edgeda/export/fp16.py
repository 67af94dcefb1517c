"""fp16 by conversion of the fp32 graph, input and output left in fp32."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

from edgeda.errors import require
from edgeda.export.graph import sort_nodes

if TYPE_CHECKING:
    from onnx import ModelProto


def to_fp16(model: ModelProto) -> ModelProto:
    """A copy of an fp32 graph whose layers and weights are fp16 between two casts; overflow is clipped, never infinite.

    Closer to fp32 than exporting a network cast with `.half()`, whose BatchNorm is rounded before it is folded.
    """
    float16 = require("onnxruntime.transformers.float16", "cpu", "converting a model to fp16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every weight below 6e-8, which becomes the nearest fp16
        converted: ModelProto = float16.convert_float_to_float16(copy.deepcopy(model), keep_io_types=True)
    sort_nodes(converted.graph)
    return converted
