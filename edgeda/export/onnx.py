"""A network as a portable ONNX file that describes itself and holds nothing of this machine."""

from __future__ import annotations

import contextlib
import copy
import io
import linecache
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from edgeda.errors import InputError, from_os_error, require
from edgeda.export.graph import finish, opset_of, to_opset
from edgeda.models import LogitsOnly, Network
from edgeda.runtime.manifest import Manifest
from edgeda.whole_file import whole_file

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
_LOWEST_TORCH_OPSET = 18
"""torch takes a lower one without a word and writes this."""


def export_onnx(network: Network, manifest: Manifest, path: Path) -> Manifest:
    """Write `network` as fp32 ONNX: `images` `(batch, 3, S, S)` to `logits` `(batch, C)`, any batch.

    S is `manifest.preprocessing.size`. The same network and manifest give the same bytes. Returns the
    manifest with the opset read back from the graph; that one is inside the file. Raises InputError
    when the network cannot be exported or `path` not be written, and then leaves `path` as it was.
    """
    model = to_model(network, manifest)
    manifest = replace(manifest, opset=opset_of(model))
    content = finish(model, manifest)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return manifest


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place on success and is removed on failure.

    OSError inside, such as a full disk, becomes an InputError.
    """
    try:
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error


def to_model(network: Network, manifest: Manifest, opset: int = OPSET) -> ModelProto:
    """An fp32 graph of any batch in exactly `opset`; torch's own exporter folds every BatchNorm into the layer before.

    InputError when torch cannot export the network, or the converter not bring it down to `opset`.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "train", "exporting to ONNX")
    module = LogitsOnly(copy.deepcopy(network)).to("cpu", torch.float32).eval()
    size = manifest.preprocessing.size
    noise = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(noise),
        contextlib.redirect_stderr(noise),
        _source_texts_forgotten(),
    ):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                opset_version=max(opset, _LOWEST_TORCH_OPSET),
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
    _let_go(program)
    return to_opset(model, opset)


@contextlib.contextmanager
def _source_texts_forgotten() -> Iterator[None]:
    """Remove what torch.fx keeps of each graph's source text for tracebacks: 0.3 MB an export, for ever."""
    texts: dict[str, str] = getattr(getattr(torch.fx.graph_module, "_loader", None), "eval_cache", {})
    before = set(texts)
    try:
        yield
    finally:
        for name in set(texts) - before:
            texts.pop(name, None)
            linecache.cache.pop(name, None)


def _let_go(program: torch.onnx.ONNXProgram) -> None:
    """Cut what else keeps the shapes that torch reasoned about for as long as the process lives, a megabyte an export.

    A ShapeEnv holds its inputs, whose symbolic sizes hold it where the garbage collector does not look (in C++); and
    the caches of its methods, one for all ShapeEnvs, hold it too.
    """
    exported = program.exported_program
    for node in exported.graph.nodes if exported is not None else ():
        shapes = getattr(getattr(node.meta.get("val"), "fake_mode", None), "shape_env", None)
        if shapes is not None:
            shapes.tracked_fakes = None
    for method in vars(ShapeEnv).values():
        clear_cache = getattr(method, "cache_clear", None)
        if clear_cache is not None:
            clear_cache()
