"""Engines that run an exported model: ONNX Runtime and OpenVINO behind one small protocol."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, MachineError, did_you_mean, from_os_error, one_line, require
from edgeda.runtime.manifest import METADATA_KEY, Manifest
from edgeda.runtime.onnx_file import read_metadata

ENGINES = ("onnxruntime", "openvino")
CPU_PROVIDER = "CPUExecutionProvider"
_OPENVINO_PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_OPENVINO_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class Backend(Protocol):
    """A loaded model: float32 NCHW images in, float32 logits out."""

    name: str
    """What executes: `torch`, `onnxruntime`, `openvino`."""
    precision: str
    """The precision really executed, as far as the engine tells: `fp32`, `bf16`, `int8`, or `unknown`."""
    manifest: Manifest | None
    """None for a model that edgeda did not export."""
    input_shape: tuple[int, int, int]
    """Channels, height, width."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images `(B, 3, H, W)`."""
        ...


class FileBackend(ABC):
    """What the engines share: checking a batch, and splitting it for a model of a fixed batch size."""

    name: str
    precision: str

    def __init__(self, path: Path, manifest: Manifest | None, input_dims: Sequence[int | None]) -> None:
        self.path = path
        self.manifest = manifest
        self.fixed_batch: int | None
        """The only batch size the graph takes; None when it takes any."""
        self.fixed_batch, self.input_shape = _resolve_shape(path, manifest, input_dims)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images `(B, 3, H, W)`; InputError for any other shape or type.

        A model of fixed batch size k runs k images at a time and refuses a remainder.
        """
        check_batch(batch, self.input_shape)
        step = self.fixed_batch or len(batch)
        if len(batch) % step:
            raise InputError(
                f"{self.path} takes batches of exactly {step} images, got {len(batch)}; pad the batch, or export "
                "the model with a dynamic batch"
            )
        parts = [self._run(batch[start : start + step]) for start in range(0, len(batch), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @abstractmethod
    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch of a size that the graph takes."""


class OnnxRuntimeBackend(FileBackend):
    """An `.onnx` file on ONNX Runtime, on the CPU unless `providers` asks for others, best first.

    Raises InputError for a file that is no ONNX classifier, MachineError when ONNX Runtime would not
    really use the first of `providers` (left alone, it falls back to the CPU silently).
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        ort = require("onnxruntime", "cpu", "running a model on ONNX Runtime")
        manifest = read_manifest(path)
        wanted = list(providers or (CPU_PROVIDER,))
        available = ort.get_available_providers()
        if absent := [name for name in wanted if name not in available]:
            raise MachineError(f"this ONNX Runtime has no {', '.join(absent)}; it has {', '.join(available)}")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.inter_op_num_threads = 1
        if _checked_threads(threads) is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime's errors share no parent but Exception
            raise InputError(f"ONNX Runtime cannot load {path}: {one_line(error)}") from error
        if (used := self._session.get_providers()[0]) != wanted[0]:
            raise MachineError(f"ONNX Runtime fell back from {wanted[0]} to {used}; are its libraries installed?")
        self._session.disable_fallback()
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [value.type for value in inputs] != ["tensor(float)"]:
            found = ", ".join(f"{value.name}: {value.type}" for value in inputs)
            raise InputError(f"{path} must have one float32 input of images, it has {found or 'none'}")
        self._input = inputs[0].name
        self._output = _choose_output(path, manifest, {value.name: len(value.shape) for value in outputs})
        self.precision = manifest.precision if manifest else "unknown"
        super().__init__(path, manifest, [dim if isinstance(dim, int) else None for dim in inputs[0].shape])

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (logits,) = self._session.run([self._output], {self._input: batch})
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run {self.path}: {one_line(error)}") from error
        return np.asarray(logits, np.float32)


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
            "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[wanted],
        }
        if _checked_threads(threads) is not None:
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
        self._output = compiled.output(_choose_output(path, manifest, ranks))
        self._request = compiled.create_infer_request()
        dims = compiled.input(0).get_partial_shape()
        super().__init__(path, manifest, [None if dim.is_dynamic else dim.get_length() for dim in dims])

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            self._request.infer({0: batch})
        except Exception as error:
            raise InputError(f"OpenVINO cannot run {self.path}: {one_line(error)}") from error
        return np.array(self._request.get_tensor(self._output).data, np.float32)


def available_engines() -> list[str]:
    """The engines whose packages are installed here, the preferred one first."""
    specs = {name: importlib.util.find_spec(name) for name in ENGINES}
    return [name for name, spec in specs.items() if spec is not None and spec.origin is not None]


def open_backend(path: Path, engine: str | None = None, threads: int | None = None) -> Backend:
    """Load an exported model: an `.onnx`, an OpenVINO `.xml`, or a folder with one `.xml`.

    `engine` None takes ONNX Runtime for an `.onnx` where it is installed, else OpenVINO.
    Raises InputError for a bad path or engine, MissingExtra when the engine is not installed.
    """
    if engine is not None and engine not in ENGINES:
        raise InputError(f"no engine '{engine}'{did_you_mean(engine, ENGINES)}")
    if path.is_dir():
        found = sorted(path.glob("*.xml"))
        if len(found) != 1:
            raise InputError(f"{path} holds {len(found)} OpenVINO models (.xml), expected one; name the file itself")
        path = found[0]
    is_ir = path.suffix.lower() == ".xml"
    if is_ir and engine == "onnxruntime":
        raise InputError(f"{path} is an OpenVINO model, which ONNX Runtime cannot run; leave the engine out")
    if engine == "openvino" or is_ir or (engine is None and available_engines() == ["openvino"]):
        return OpenVinoBackend(path, threads)
    return OnnxRuntimeBackend(path, threads)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest inside an ONNX file, or `manifest.json` beside an OpenVINO `.xml`; None without one.

    Raises InputError for a file that is missing or no model, and for a manifest that cannot be read.
    """
    if path.suffix.lower() != ".xml":
        text = read_metadata(path).get(METADATA_KEY)
    elif not path.is_file():
        raise InputError(f"no such model: {path}")
    else:
        beside = path.with_name("manifest.json")
        try:
            text = beside.read_text(encoding="utf-8") if beside.is_file() else None
        except UnicodeDecodeError as error:
            raise InputError(f"{beside} is not UTF-8 text") from error
        except OSError as error:
            raise from_os_error(error, "reading the manifest") from error
    try:
        return None if text is None else Manifest.from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: the model's manifest is not JSON: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_batch(batch: NDArray[np.float32], input_shape: tuple[int, int, int]) -> None:
    """InputError unless `batch` is float32 `(B, *input_shape)` with B at least 1."""
    expected = f"float32 (B, {', '.join(map(str, input_shape))})"
    if not isinstance(batch, np.ndarray):
        raise InputError(f"expected a numpy array {expected}, got {type(batch).__name__}")
    if batch.dtype != np.float32 or batch.shape[1:] != input_shape or batch.ndim != 4 or len(batch) == 0:
        raise InputError(f"expected images {expected}, got {batch.dtype} {batch.shape}")


def _resolve_shape(
    path: Path, manifest: Manifest | None, dims: Sequence[int | None]
) -> tuple[int | None, tuple[int, int, int]]:
    """Fixed batch size or None, and channels, height, width, from the graph's input `(B, C, H, W)`."""
    if len(dims) != 4:
        raise InputError(f"{path} takes an input of {len(dims)} dimensions; edgeda runs models of images (B, C, H, W)")
    size = manifest.preprocessing.size if manifest else None
    batch, channels, height, width = (
        known if known is not None else said for known, said in zip(dims, (None, 3, size, size), strict=True)
    )
    if channels is None or height is None or width is None:
        raise InputError(
            f"{path} leaves the size of its input open and has no edgeda manifest; export it at a fixed size"
        )
    if size is not None and (height, width) != (size, size):
        raise InputError(
            f"{path} takes {height}x{width} images, but its own manifest says {size}x{size}; export it again"
        )
    return batch, (channels, height, width)


def _choose_output(path: Path, manifest: Manifest | None, ranks: dict[str, int]) -> str:
    """The output that holds the logits `(B, C)`: the one the manifest names, or the first."""
    name = manifest.output_name if manifest else next(iter(ranks), "")
    if ranks.get(name) != 2:
        found = ", ".join(f"{key} of {rank} dimensions" for key, rank in ranks.items())
        raise InputError(f"{path} has no output of logits (B, C), only {found or 'none'}; edgeda runs classifiers")
    return name


def _checked_threads(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    return threads
