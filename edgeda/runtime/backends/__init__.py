"""Engines that run an exported model, behind one small protocol: a file each, a line each in ENGINES."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

from edgeda.errors import InputError, did_you_mean
from edgeda.runtime.backends.base import Backend, FileBackend, check_batch, read_manifest
from edgeda.runtime.backends.engine_file import SUFFIX as ENGINE_SUFFIX
from edgeda.runtime.backends.onnx_runtime import CPU_PROVIDER, OnnxRuntimeBackend
from edgeda.runtime.backends.open_vino import OpenVinoBackend
from edgeda.runtime.backends.tensorrt import TensorRtBackend
from edgeda.runtime.runs import exported_models, is_run

__all__ = [
    "CPU_PROVIDER",
    "ENGINES",
    "Backend",
    "FileBackend",
    "OnnxRuntimeBackend",
    "OpenVinoBackend",
    "TensorRtBackend",
    "available_engines",
    "check_batch",
    "open_backend",
    "read_manifest",
]

ENGINES = ("onnxruntime", "openvino", "tensorrt")


def available_engines() -> list[str]:
    """The engines whose packages are installed here, the preferred one first."""
    specs = {name: importlib.util.find_spec(name) for name in ENGINES}
    return [name for name, spec in specs.items() if spec is not None and spec.origin is not None]


def open_backend(path: Path, engine: str | None = None, threads: int | None = None) -> Backend:
    """Load an exported model: an `.onnx`, an OpenVINO `.xml` or a folder with one, or a TensorRT `.engine`.

    `engine` None takes ONNX Runtime for an `.onnx` where it is installed, else OpenVINO.
    Raises InputError for a bad path or engine, MissingExtra when the engine is not installed.
    """
    if engine is not None and engine not in ENGINES:
        raise InputError(f"no engine '{engine}'{did_you_mean(engine, ENGINES)}")
    if path.is_dir():
        found = sorted(path.glob("*.xml"))
        if not found and is_run(path):
            models = [shlex.quote(str(model)) for model in exported_models(path)]
            hint = (
                f"name one of: {', '.join(models)}"
                if models
                else f"make one with: edgeda export {shlex.quote(str(path))}"
            )
            raise InputError(f"{path} is a run directory, not a model; {hint}")
        if len(found) != 1:
            raise InputError(f"{path} holds {len(found)} OpenVINO models (.xml), expected one; name the file itself")
        path = found[0]
    is_engine = path.suffix.lower() == ENGINE_SUFFIX
    if is_engine and engine not in (None, "tensorrt"):
        raise InputError(f"{path} is a TensorRT engine, which {engine} cannot run; leave the engine out")
    if engine == "tensorrt" and not is_engine:
        raise InputError(f"{path} is no TensorRT engine (.engine); build one with: edgeda export RUN --trt")
    if is_engine:
        return TensorRtBackend(path, threads)
    is_ir = path.suffix.lower() == ".xml"
    if is_ir and engine == "onnxruntime":
        raise InputError(f"{path} is an OpenVINO model, which ONNX Runtime cannot run; leave the engine out")
    usable = [name for name in available_engines() if name != "tensorrt"]
    if engine == "openvino" or is_ir or (engine is None and usable == ["openvino"]):
        return OpenVinoBackend(path, threads)
    return OnnxRuntimeBackend(path, threads)
