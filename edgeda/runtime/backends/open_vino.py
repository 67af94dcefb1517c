"""OpenVINO."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, MachineError, did_you_mean, one_line, require
from edgeda.runtime.backends.base import FileBackend, checked_threads, choose_output, read_manifest
from edgeda.runtime.backends.signal_stack import kept_signal_stack
from edgeda.runtime.manifest import FLOAT_NCHW

_OPENVINO_PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_EXECUTED = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_LAYERS = ("Convolution", "FullyConnected", "MatMul")


class OpenVinoBackend(FileBackend):
    """An OpenVINO `.xml` or an `.onnx` file on OpenVINO's CPU plugin, tuned for latency.

    `precision` is what the floating-point layers compute in: `fp32` (the default here; left alone,
    OpenVINO takes bf16 on a CPU that has it and says nothing), `bf16` or `fp16`. The attribute
    `precision` is what the compiled model says its convolutions and matrix products run in, by most of them.
    Raises InputError for a model that cannot be read, MachineError for a precision this CPU lacks.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int | None = None, precision: str | None = None) -> None:
        openvino = require("openvino", "openvino", "running a model on OpenVINO")
        manifest = read_manifest(path)
        wanted = precision or "fp32"
        if wanted not in _OPENVINO_PRECISIONS:
            raise InputError(f"no OpenVINO precision '{wanted}'{did_you_mean(wanted, _OPENVINO_PRECISIONS)}")
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # else two one-threaded models take turns on the same core
            "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[wanted],
        }
        if checked_threads(threads) is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            with kept_signal_stack():
                core = openvino.Core()
                model = core.read_model(str(path))
                compiled = core.compile_model(model, "CPU", config)
        except Exception as error:  # openvino raises bare RuntimeError and its own GeneralFailure
            raise InputError(f"OpenVINO cannot load {path}: {one_line(error)}") from error
        told = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())  # numpy has no bf16 to map it to
        used = _EXECUTED.get(told, told)
        if used != wanted:
            raise MachineError(f"OpenVINO computes in {used} on this CPU, not in {wanted}; leave the precision out")
        self.precision = executed_precision(compiled) or used
        kind = (manifest.layout if manifest else FLOAT_NCHW).split()[0]
        found = [value.get_element_type().to_dtype().name for value in compiled.inputs]
        if found != [kind]:
            raise InputError(f"{path} must have one {kind} input of images, it has {', '.join(found) or 'none'}")
        ranks = {value.get_any_name(): len(value.get_partial_shape()) for value in compiled.outputs}
        self._output = compiled.output(choose_output(path, manifest, ranks))
        self._request = compiled.create_infer_request()
        self._tensor = openvino.Tensor
        dims = compiled.input(0).get_partial_shape()
        super().__init__(path, manifest, [None if dim.is_dynamic else dim.get_length() for dim in dims])

    def _run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        whole = np.require(batch, requirements=["C", "W"])  # what a tensor can share instead of copying
        try:
            self._request.set_input_tensor(self._tensor(whole, shared_memory=True))
            self._request.infer()
        except Exception as error:
            raise InputError(f"OpenVINO cannot run {self.path}: {one_line(error)}") from error
        return np.array(self._request.get_tensor(self._output).data, np.float32)


def executed_precision(compiled: Any) -> str | None:
    """What most convolutions and matrix products of a compiled model run in: `fp32`, `bf16`, `fp16` or `int8`.

    Read from the execution graph, where the engine records it; None when it holds none of them.
    """
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    found = Counter(_of_layer(facts) for facts in told if str(facts["layerType"].value) in _LAYERS)
    return found.most_common(1)[0][0] if found else None


def _of_layer(facts: Any) -> str:
    """int8 where the layer's input is; else what its kernel's name ends in: weights may be stored in half."""
    told = _EXECUTED.get(str(facts["runtimePrecision"].value), "unknown")
    if told == "int8":
        return told
    return _EXECUTED.get(str(facts["primitiveType"].value).rpartition("_")[2], told)
