"""Build a TensorRT engine from an ONNX file, on the device that will run it.

This file is a module of edgeda, and goes to devices as it is under the name build_engine.py: it needs Python 3.8
and TensorRT (8.5 to 11) and nothing else. What to build is in build_engine.json beside it:

    python3 build_engine.py [build_engine.json]

It writes the engine, which stays plain so that trtexec and DeepStream read it, and ENGINE.json: what it was built
from, by which version, for which GPU, and the precisions of the network. Exit codes: 0 done; 2 the request is wrong;
3 this machine cannot build it.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeda.runtime.tensorrt_api import Builder, Config, Network, Parser

REQUEST_NAME = "build_engine.json"
_REQUEST = ("onnx", "onnx_sha256", "engine", "package", "precision", "half", "batch", "workspace_mb", "timing_cache",
            "dla_core", "version_compatible", "manifest")  # fmt: skip
STRONG_FROM = (10, 12)
"""Before this version, strong typing is not reliable: the builder flags FP16 and INT8 are used instead."""
_COMPUTE = ("CONVOLUTION", "DECONVOLUTION", "FULLY_CONNECTED", "MATRIX_MULTIPLY")
_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}
_INPUT, _MACHINE = 2, 3


class BuildError(Exception):
    """No engine was built, in one line. `exit_code` 2: the request is wrong, 3: this machine lacks something."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


def build(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build what `request` says from the ONNX file in `folder`; returns what is written to ENGINE.json.

    The request holds `onnx`, `onnx_sha256`, `engine` (file names), `package` (`tensorrt` or `tensorrt_rtx`),
    `precision` and `half` (of the graph: the latter whether it holds fp16 weights), `batch` (least, usual, most),
    `workspace_mb` (MiB, as trtexec counts), `timing_cache`, `dla_core`, `version_compatible`, `manifest`. Raises
    BuildError; then nothing is written.
    """
    onnx = folder / request["onnx"]
    if not onnx.is_file():
        raise BuildError(f"{onnx} is not there; copy it beside build_engine.py", _INPUT)
    if hashlib.sha256(onnx.read_bytes()).hexdigest() != request["onnx_sha256"]:
        raise BuildError(f"{onnx} is not the file that the request was made for; export again", _INPUT)
    trt = _package(request["package"])
    log = _log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # "factory function returned nullptr": all that TensorRT says without a driver
        raise BuildError(f"TensorRT {trt.__version__} finds no NVIDIA driver or GPU here", _MACHINE) from error
    strong = _is_strong(trt)
    network = builder.create_network(_network_flags(trt, strong))
    _parse(trt.OnnxParser(network, log), onnx, log, trt.__version__)
    config = _configure(trt, builder, network, request, folder, strong)
    layers, compute = count_precisions(network)
    check_precisions(request["precision"], compute, strong, trt.__version__)
    started = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildError(f"TensorRT {trt.__version__} cannot build {onnx.name}: {log.last()}", _MACHINE)
    seconds = time.perf_counter() - started
    content = bytes(serialized)
    engine = folder / request["engine"]
    report = dict(request["manifest"])
    sha256 = hashlib.sha256(content).hexdigest()
    report.update(batch=[request["batch"][0], request["batch"][2]], sha256=sha256, size_mb=len(content) / 1e6)
    report["tools"] = dict(report.get("tools") or {}, **{request["package"]: trt.__version__})
    report["engine"] = {
        "package": request["package"],
        "version": trt.__version__,
        "gpu": None if request["package"] == "tensorrt_rtx" else gpu(),  # TensorRT for RTX builds for many
        "architecture": platform.machine(),
        "typing": "strong" if strong else "weak",
        "layers": layers,
        "compute_layers": compute,
        "batch": list(request["batch"]),
        "workspace_mb": request["workspace_mb"],
        "dla_core": request["dla_core"],
        "version_compatible": request["version_compatible"],
        "tf32": bool(config.get_flag(trt.BuilderFlag.TF32)),
        "onnx": request["onnx"],
        "onnx_sha256": request["onnx_sha256"],
        "build_s": round(seconds, 3),
    }
    _write(engine, content)
    _write(engine.with_name(engine.name + ".json"), (json.dumps(report, indent=2) + "\n").encode())
    if request["timing_cache"] and (cache := config.get_timing_cache()) is not None:
        _write(folder / request["timing_cache"], bytes(cache.serialize()))
    return report


def count_precisions(network: Network) -> tuple[dict[str, int], dict[str, int]]:
    """How many layers give which type, and in which precision the convolutions and matrix products work.

    A compute layer works in int8 when what it takes comes out of a DequantizeLinear: TensorRT fuses the two.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantized = {layer.get_output(0).name for layer in layers if _named(layer.type) == "DEQUANTIZE"}
    types = Counter(_named(layer.get_output(0).dtype) for layer in layers if layer.num_outputs)
    compute: Counter[str] = Counter()
    for layer in layers:
        if _named(layer.type) in _COMPUTE:
            taken = layer.get_input(0)
            quantized = taken is not None and taken.name in dequantized
            found = _named(layer.get_output(0).dtype)
            compute["int8" if quantized else _PRECISIONS.get(found, found)] += 1
    return dict(types), dict(compute)


def check_precisions(precision: str, compute: dict[str, int], strong: bool, version: str) -> None:
    """BuildError unless the network computes in what the file claims to be.

    With weak typing the types of a network say nothing of fp16: there the builder chooses, layer by layer.
    """
    if precision == "fp16" and not strong:
        return
    allowed = {"fp32": {"fp32"}, "fp16": {"fp16", "fp32"}, "int8": {"int8", "fp16", "fp32"}}.get(precision)
    if allowed is None:
        raise BuildError(f"no precision '{precision}' for TensorRT; known: fp32, fp16, int8", _INPUT)
    if not compute.get(precision) or set(compute) - allowed:
        found = ", ".join(f"{count} in {name}" for name, count in sorted(compute.items())) or "none at all"
        raise BuildError(
            f"the file says {precision}, but of its convolutions and matrix products TensorRT {version} has {found}; "
            "export it again",
            _INPUT,
        )


def gpu() -> dict[str, str] | None:
    """`name` and `compute_capability` (such as 8.7) of the first GPU, as the driver tells; None without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device):
        return None
    for attribute, value in ((75, major), (76, minor)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return {"name": name.value.decode(errors="replace"), "compute_capability": f"{major.value}.{minor.value}"}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise BuildError(f"{name} cannot be imported: {error}", _MACHINE) from error


def _log(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors for the one line that is shown."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))

        def last(self) -> str:
            return self.errors[-1][:300] if self.errors else "it gives no reason"

    return Log()


def _is_strong(trt: Any) -> bool:
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    return not hasattr(trt.BuilderFlag, "FP16") or version >= STRONG_FROM


def _network_flags(trt: Any, strong: bool) -> int:
    """Strong typing where it can be asked for, else an explicit batch dimension where that has to be."""
    known = trt.NetworkDefinitionCreationFlag
    wanted = "STRONGLY_TYPED" if strong else "EXPLICIT_BATCH"
    return 1 << int(getattr(known, wanted)) if hasattr(known, wanted) else 0


def _parse(parser: Parser, onnx: Path, log: Any, version: str) -> None:
    if not parser.parse_from_file(str(onnx)):
        said = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        reason = " ".join((said[-1] if said else log.last()).split())[:300]
        raise BuildError(f"TensorRT {version} cannot read {onnx.name}: {reason}", _INPUT)


def _configure(
    trt: Any, builder: Builder, network: Network, request: dict[str, Any], folder: Path, strong: bool
) -> Config:
    config = builder.create_builder_config()
    if not strong:
        if request["half"]:
            config.set_flag(trt.BuilderFlag.FP16)
        if request["precision"] == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
    if request["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] * 2**20)
    if request["version_compatible"]:
        if not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
            raise BuildError(f"TensorRT {trt.__version__} builds no version-compatible engines", _MACHINE)
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request["dla_core"] is not None:
        _use_dla(trt, builder, config, request, strong)
    if request["timing_cache"]:
        kept = folder / request["timing_cache"]
        cache = config.create_timing_cache(kept.read_bytes() if kept.is_file() else b"")
        if not config.set_timing_cache(cache, False):
            raise BuildError(f"the timing cache {kept} is of another GPU or version; delete it", _INPUT)
    _add_profile(builder, network, config, request["batch"])
    return config


def _use_dla(trt: Any, builder: Builder, config: Config, request: dict[str, Any], strong: bool) -> None:
    core = request["dla_core"]
    if request["precision"] == "fp32":
        raise BuildError("a DLA computes in fp16 or int8, not in fp32; add --precision fp16", _INPUT)
    if request["precision"] == "int8" and not strong:
        raise BuildError("before TensorRT 11, a DLA takes no quantized ONNX file; add --precision fp16", _INPUT)
    if core >= builder.num_DLA_cores:
        raise BuildError(f"no DLA core {core} here: this device has {builder.num_DLA_cores}", _MACHINE)
    if len(set(request["batch"])) > 1:  # TensorRT only warns, and gives every layer to the GPU
        batch = ", ".join(map(str, request["batch"]))
        raise BuildError(f"a DLA takes one batch size only, not {batch}; export with --batch 1", _INPUT)
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _add_profile(builder: Builder, network: Network, config: Config, batch: list[int]) -> None:
    if network.num_inputs != 1:
        raise BuildError(f"the network has {network.num_inputs} inputs; one is expected", _INPUT)
    image = network.get_input(0)
    fixed, *rest = image.shape
    if any(size < 1 for size in rest):
        raise BuildError(f"the input {image.name} leaves its size open; export it at a fixed size", _INPUT)
    if fixed > 0:
        if set(batch) != {fixed}:
            raise BuildError(f"the file takes batches of exactly {fixed}, not {batch}", _INPUT)
        return
    profile = builder.create_optimization_profile()
    least, usual, most = ((size, *rest) for size in batch)
    profile.set_shape(image.name, least, usual, most)
    config.add_optimization_profile(profile)


def _named(member: Any) -> str:
    return str(member.name)


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}", _INPUT) from error
    finally:
        if part.exists():
            part.unlink()


def main(arguments: list[str] | None = None) -> int:
    """Build what the request says; one JSON object on stdout, or one line `error: ...` on stderr."""
    parser = argparse.ArgumentParser(description="Build a TensorRT engine from an ONNX file that edgeda exported.")
    parser.add_argument("request", nargs="?", type=Path, default=Path(__file__).resolve().parent / REQUEST_NAME)
    path = parser.parse_args(arguments).request
    try:
        try:
            request = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BuildError(f"{path} cannot be read: {error}", _INPUT) from error
        missing = [key for key in _REQUEST if not isinstance(request, dict) or key not in request]
        if missing:
            raise BuildError(f"{path} does not say {', '.join(missing)}; export again, or copy it again", _INPUT)
        report = build(request, path.resolve().parent)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report["engine"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
