"""A network as a portable ONNX file that describes itself and holds nothing of this machine."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgeda.errors import InputError, from_os_error, require
from edgeda.models import LogitsOnly, Network
from edgeda.runtime.manifest import METADATA_KEY, Manifest

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto

OPSET = 20
NAMES_KEY = "names"
"""Metadata key of the class names as `{"0": name}`, which other tools read too."""


def export_onnx(network: Network, manifest: Manifest, path: Path) -> Manifest:
    """Write `network` as fp32 ONNX: `images` `(batch, 3, S, S)` to `logits` `(batch, C)`, any batch.

    S is `manifest.preprocessing.size`. The same network and manifest give the same bytes. Returns the
    manifest with the opset read back from the graph; that one is inside the file. Raises InputError
    when the network cannot be exported or `path` not be written, and then leaves `path` as it was.
    """
    model = _convert(network, manifest)
    _strip(model.graph)
    for function in model.functions:
        _strip(function)
    model.doc_string = ""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    manifest = replace(manifest, opset=opset)
    names = {str(index): name for index, name in enumerate(manifest.classes)}
    del model.metadata_props[:]
    for key, value in ((METADATA_KEY, manifest.embedded()), (NAMES_KEY, json.dumps(names))):
        model.metadata_props.add(key=key, value=value)
    onnx = require("onnx", "train", "exporting to ONNX")
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return manifest


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place on success and is removed on failure.

    OSError inside, such as a full disk, becomes an InputError.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _convert(network: Network, manifest: Manifest) -> ModelProto:
    """Torch's own exporter, in silence; it folds every BatchNorm into the layer before it."""
    for package in ("onnx", "onnxscript"):
        require(package, "train", "exporting to ONNX")
    module = LogitsOnly(copy.deepcopy(network)).to("cpu", torch.float32).eval()
    size = manifest.preprocessing.size
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[manifest.input_name],
                output_names=[manifest.output_name],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise InputError(f"torch cannot export {network.architecture.backbone} to ONNX: {reason}") from error
    if program is None:
        raise RuntimeError("torch.onnx.export(dynamo=True) returned no program")
    model: ModelProto = program.model_proto
    return model


def _strip(graph: GraphProto | FunctionProto) -> None:
    """Remove every comment: torch puts stack traces with local paths there."""
    parts = [graph, *graph.node, *graph.value_info]
    if hasattr(graph, "initializer"):
        parts += [*graph.input, *graph.output, *graph.initializer]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _strip(inner)
