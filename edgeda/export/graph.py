"""Surgery on ONNX graphs that every precision shares: order, opset, batch, metadata."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, one_line, require
from edgeda.runtime.manifest import METADATA_KEY, Manifest

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

NAMES_KEY = "names"
"""Metadata key of the class names as `{"0": name}`, which other tools read too."""
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9}
"""The file format version that came with each opset: an older reader refuses a later one."""


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators that a model says it uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def to_opset(model: ModelProto, opset: int) -> ModelProto:
    """A model of exactly `opset`, converted where it has another; InputError when it cannot be."""
    if opset_of(model) != opset:
        converter = require("onnx.version_converter", "train", "converting an ONNX file")
        model = copy.deepcopy(model)
        for node in model.graph.node:  # opset 18's default, said aloud, which 17 does not know
            for attribute in list(node.attribute):
                if attribute.name == "noop_with_empty_axes" and attribute.i == 0:
                    node.attribute.remove(attribute)
        try:
            model = converter.convert_version(model, opset)
        except Exception as error:  # the converter raises RuntimeError and its own kinds
            raise InputError(f"the network cannot be written in ONNX opset {opset}: {one_line(error)}") from error
        if opset_of(model) != opset:
            raise InputError(f"the network cannot be written in ONNX opset {opset}, only in {opset_of(model)}")
    if opset in IR_VERSIONS:
        model.ir_version = IR_VERSIONS[opset]
    return model


def fix_batch(model: ModelProto, batch: tuple[int, int | None]) -> None:
    """Make the batch a fixed size where the range holds only one; a range keeps the graph dynamic."""
    if batch[0] == batch[1]:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch[0]
        del model.graph.value_info[:]


def finish(model: ModelProto, manifest: Manifest) -> bytes:
    """A checked model's bytes, with the manifest inside, no comments and nothing of this machine.

    The same model and manifest give the same bytes.
    """
    sort_nodes(model.graph)
    strip(model.graph)
    for function in model.functions:
        strip(function)
    model.doc_string = ""
    names = {str(index): name for index, name in enumerate(manifest.classes)}
    del model.metadata_props[:]
    for key, value in ((METADATA_KEY, manifest.embedded()), (NAMES_KEY, json.dumps(names))):
        model.metadata_props.add(key=key, value=value)
    require("onnx.checker", "train", "exporting to ONNX").check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def sort_nodes(graph: GraphProto) -> None:
    """Put every node behind those that it reads, otherwise in the order found."""
    made = {name for node in graph.node for name in node.output}
    waiting: list[NodeProto] = list(graph.node)
    ready: set[str] = set()
    ordered: list[NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready or name not in made for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise RuntimeError("the graph has a cycle")
        waiting = later
    copies = [copy.deepcopy(node) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def strip(graph: Any) -> None:
    """Remove every comment of a graph or function: torch puts stack traces with local paths there."""
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
                strip(inner)


def to_tensor(name: str, values: NDArray[Any]) -> Any:
    """A named initializer."""
    return require("onnx.numpy_helper", "train", "exporting to ONNX").from_array(np.asarray(values), name)


def initializers(graph: GraphProto, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """The constants of a graph by name, or those of `names`."""
    helper = require("onnx.numpy_helper", "train", "exporting to ONNX")
    chosen = None if names is None else set(names)
    return {value.name: helper.to_array(value) for value in graph.initializer if chosen is None or value.name in chosen}
