"""ONNX Runtime."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, MachineError, one_line, require
from edgeda.runtime.backends.base import FileBackend, checked_threads, choose_output, read_manifest
from edgeda.runtime.manifest import FLOAT_NCHW

CPU_PROVIDER = "CPUExecutionProvider"
_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}


def session_options(ort: Any) -> Any:
    """Options of any ONNX Runtime session here: quiet, and with int8 products that do not overflow.

    On x86 without VNNI its fast kernel for uint8 x int8 adds pairs in 16 bits, which saturate; asked for precision, it
    takes a slower one there, and changes nothing elsewhere.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class OnnxRuntimeBackend(FileBackend):
    """An `.onnx` file on ONNX Runtime, on the CPU unless `providers` asks for others, best first.

    Raises InputError for a file that is no ONNX classifier, MachineError when ONNX Runtime would not
    really use the first of `providers` (left alone, it falls back to the CPU silently).
    """

    name = "onnxruntime"
    concurrent = True

    def __init__(self, path: Path, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        ort = require("onnxruntime", "cpu", "running a model on ONNX Runtime")
        manifest = read_manifest(path)
        wanted = list(providers or (CPU_PROVIDER,))
        available = ort.get_available_providers()
        if absent := [name for name in wanted if name not in available]:
            raise MachineError(f"this ONNX Runtime has no {', '.join(absent)}; it has {', '.join(available)}")
        options = session_options(ort)
        options.inter_op_num_threads = 1
        if checked_threads(threads) is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime's errors share no parent but Exception
            raise InputError(f"ONNX Runtime cannot load {path}: {one_line(error)}") from error
        if (used := self._session.get_providers()[0]) != wanted[0]:
            raise MachineError(f"ONNX Runtime fell back from {wanted[0]} to {used}; are its libraries installed?")
        self._session.disable_fallback()
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        kind = (manifest.layout if manifest else FLOAT_NCHW).split()[0]
        if [value.type for value in inputs] != [_TYPES[kind]]:
            found = ", ".join(f"{value.name}: {value.type}" for value in inputs)
            raise InputError(f"{path} must have one {kind} input of images, it has {found or 'none'}")
        self._input = inputs[0].name
        self._output = choose_output(path, manifest, {value.name: len(value.shape) for value in outputs})
        self.precision = manifest.precision if manifest else "unknown"
        if self.precision == "fp16" and used == CPU_PROVIDER and platform.machine() in ("x86_64", "AMD64"):
            self.precision = "fp32"  # its x86 kernels have no fp16: it casts back before every layer
        super().__init__(path, manifest, [dim if isinstance(dim, int) else None for dim in inputs[0].shape])

    def _run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            (logits,) = self._session.run([self._output], {self._input: batch})
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run {self.path}: {one_line(error)}") from error
        return np.asarray(logits, np.float32)
