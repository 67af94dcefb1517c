"""OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, MachineError, did_you_mean, one_line, require
from edgeda.runtime.backends.base import FileBackend, checked_threads, choose_output, read_manifest

_OPENVINO_PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_OPENVINO_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class OpenVinoBackend(FileBackend):
    """An OpenVINO `.xml` or an `.onnx` file on OpenVINO's CPU plugin, tuned for latency.

    `precision` is what the floating-point layers compute in: `fp32` (the default here; left alone,
    OpenVINO takes bf16 on a CPU that has it and says nothing), `bf16` or `fp16`. The attribute
    `precision` is what the compiled model says of itself, `int8` when it holds quantized layers.
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
            core = openvino.Core()
            model = core.read_model(str(path))
            compiled = core.compile_model(model, "CPU", config)
        except Exception as error:  # openvino raises bare RuntimeError and its own GeneralFailure
            raise InputError(f"OpenVINO cannot load {path}: {one_line(error)}") from error
        used = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_dtype())
        used = _OPENVINO_TYPES.get(used, used)
        if used != wanted:
            raise MachineError(f"OpenVINO computes in {used} on this CPU, not in {wanted}; leave the precision out")
        quantized = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        self.precision = "int8" if quantized else used
        if len(compiled.inputs) != 1 or compiled.input(0).get_element_type() != openvino.Type.f32:
            raise InputError(f"{path} must have one float32 input of images, it has {len(compiled.inputs)} inputs")
        ranks = {value.get_any_name(): len(value.get_partial_shape()) for value in compiled.outputs}
        self._output = compiled.output(choose_output(path, manifest, ranks))
        self._request = compiled.create_infer_request()
        dims = compiled.input(0).get_partial_shape()
        super().__init__(path, manifest, [None if dim.is_dynamic else dim.get_length() for dim in dims])

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            self._request.infer({0: batch})
        except Exception as error:
            raise InputError(f"OpenVINO cannot run {self.path}: {one_line(error)}") from error
        return np.array(self._request.get_tensor(self._output).data, np.float32)
