"""An exported graph with preprocessing's arithmetic inside: pixels from 0 to 255 in, probabilities out.

DeepStream subtracts a mean and multiplies by one scalar; it cannot divide by a standard deviation per channel, and its
classifier reads probabilities. So both ends go into the graph, where no consumer can get them wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, one_line, require
from edgeda.onnx_pixels import embed_preprocessing
from edgeda.runtime.backends import OnnxRuntimeBackend
from edgeda.runtime.backends.onnx_runtime import session_options
from edgeda.runtime.classifier import softmax
from edgeda.runtime.manifest import FLOAT_NCHW, LOGITS, METADATA_KEY, PROBABILITIES, Manifest
from edgeda.runtime.preprocessing import Pixels, normalize

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT, OUTPUT = "pixels", PROBABILITIES
BUNDLE_KEY = "edgeda_bundle"
"""Metadata key of a folded graph. `edgeda` would promise a graph that takes normalized images."""
LIMITS = {"fp32": 1e-4}
OTHERWISE = 2e-2
"""Largest difference of a probability: where numbers are rounded to 8 or 16 bits, a last bit may turn one of them."""


@dataclass(frozen=True)
class Folded:
    """A graph `pixels` `(B, 3, S, S)` to `probabilities` `(B, C)`, and what its consumers must be told."""

    content: bytes
    batch: int | None
    """The only batch size; None: any."""
    opset: int
    parity: dict[str, Any]
    """How far its probabilities are from those of the plain file."""


def fold(path: Path, manifest: Manifest, for_tensorrt: bool = False) -> Folded:
    """The graph of `path` with normalization before it and softmax behind it, compared with the plain file.

    `for_tensorrt` refuses quantization that TensorRT reads as something else. Raises InputError for a file that does
    not fit its manifest, MissingExtra without onnx or ONNX Runtime.
    """
    onnx = require("onnx", "train", "writing a graph with its preprocessing inside")
    if manifest.layout != FLOAT_NCHW or manifest.output != LOGITS:
        raise InputError(f"{path} has its preprocessing inside already; bundle an export made without --raw")
    plain = OnnxRuntimeBackend(path, threads=1)
    try:
        model: ModelProto = onnx.load(str(path))
    except Exception as error:  # protobuf's DecodeError is not importable without onnx
        raise InputError(f"{path} cannot be read as ONNX: {one_line(error)}") from error
    if for_tensorrt:
        source = require("edgeda.export.engine_source", "train", "a graph for TensorRT")  # imports torch
        source.check_quantization(path, onnx, model.graph)
    _check_ends(path, model, manifest)
    ends = manifest.input_name, manifest.output_name
    embed_preprocessing(model, manifest.preprocessing, ends, INPUT, FLOAT_NCHW)
    _tell(model, manifest)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return Folded(content, plain.fixed_batch, opset, _parity(content, plain, manifest))


def _check_ends(path: Path, model: ModelProto, manifest: Manifest) -> None:
    """InputError when graph and manifest do not speak of the same inputs, outputs and number of classes."""
    inputs = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name: value for value in model.graph.output}
    if inputs != {manifest.input_name} or manifest.output_name not in outputs:
        raise InputError(
            f"{path} has inputs {sorted(inputs)} and outputs {sorted(outputs)}, its manifest says "
            f"'{manifest.input_name}' and '{manifest.output_name}'; export it again"
        )
    width = outputs[manifest.output_name].type.tensor_type.shape.dim[-1].dim_value
    if width != len(manifest.classes):
        raise InputError(f"{path} tells {width} classes apart, its manifest names {len(manifest.classes)}")


def _tell(model: ModelProto, manifest: Manifest) -> None:
    """What the graph takes and gives now, in place of the metadata that promise normalized images."""
    said = {
        "input": f"{INPUT}: float32 NCHW RGB, 0 to 255",
        "output": f"{OUTPUT}: float32, softmax",
        "classes": list(manifest.classes),
        "source_run": manifest.source_run,
    }
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in (METADATA_KEY, BUNDLE_KEY)]
    del model.metadata_props[:]
    for key, value in [*kept, (BUNDLE_KEY, json.dumps(said, sort_keys=True))]:
        model.metadata_props.add(key=key, value=value)


def _parity(content: bytes, plain: OnnxRuntimeBackend, manifest: Manifest) -> dict[str, Any]:
    """Compare on pictures that reach every value; InputError when a probability differs by more than the limit."""
    ort = require("onnxruntime", "cpu", "checking the bundled graph")
    options = session_options(ort)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no parent but Exception
        raise InputError(f"ONNX Runtime cannot load the bundled graph: {one_line(error)}") from error
    count = plain.fixed_batch or 6
    squares = _pictures(count, manifest.preprocessing.size)
    expected = softmax(plain(normalize(squares, manifest.preprocessing)))
    pixels = np.ascontiguousarray(squares.transpose(0, 3, 1, 2)).astype(np.float32)
    found: NDArray[np.float32] = session.run([OUTPUT], {INPUT: pixels})[0]
    difference, limit = float(np.abs(found - expected).max()), LIMITS.get(manifest.precision, OTHERWISE)
    if not difference <= limit:  # not finite is not less either
        raise InputError(
            f"the bundled graph differs from {plain.path} by {difference:.1e} in a probability (limit {limit:.0e}); "
            "nothing was written"
        )
    return {"images": count, "images_from": "generated", "max_abs_error": difference, "limit": limit}


def _pictures(count: int, size: int) -> Pixels:
    """Noise, ramps and flat black and white, `(count, size, size, 3)`."""
    random = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    random[1::4] = np.linspace(0, 255, size, dtype=np.uint8)[:, None, None]
    random[2::4] = 0
    random[3::4] = 255
    return random
