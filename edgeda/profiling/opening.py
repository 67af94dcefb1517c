"""A model in an engine, and opening it: plain values that another process can open as well."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeda.errors import EdgedaError, InputError, MachineError, require
from edgeda.profiling.complexity import Complexity, torch_complexity
from edgeda.profiling.layers import Layer, onnx_layers, torch_layers
from edgeda.profiling.onnx_graph import onnx_complexity
from edgeda.runtime.backends import CPU_PROVIDER, Backend, OnnxRuntimeBackend, open_backend
from edgeda.runtime.backends.tensorrt import engine_module
from edgeda.runtime.preprocessing import Preprocessing

TORCH = "torch"
PROVIDERS = {
    "onnxruntime": CPU_PROVIDER,
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-coreml": "CoreMLExecutionProvider",
    "onnxruntime-xnnpack": "XnnpackExecutionProvider",
}
"""ONNX Runtime once for each execution provider."""
ENGINES = (TORCH, *PROVIDERS, "openvino", "tensorrt")
FILE_ENGINES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".engine": ("tensorrt",)}
"""What runs which kind of file, in the order in which it is tried."""


@dataclass(frozen=True)
class Opened:
    """A model ready to run, and what is known of it without running it."""

    backend: Backend
    preprocessing: Preprocessing | None
    """What the model itself says of its images; None for a model that edgeda did not export."""
    size_mb: float
    load_ms: float | None
    """Time to read and prepare it, the engine's packages already imported; None for random weights."""
    complexity: Complexity | None = None
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """A model in an engine, not opened yet: opening may fail, and takes memory."""

    model: str
    engine: str
    location: str
    """Path of a file or OpenVINO folder, or a backbone's name."""
    classes: int | None = None
    """Of a backbone."""
    input_size: int | None = None
    """Of a backbone, in pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: `Subject(**values)` is the same subject."""
        return asdict(self)

    def prepare(self) -> None:
        """Import what opening needs, so that opening can be timed; MissingExtra when it is not there."""
        if self.engine == TORCH:
            for module in ("torch", "timm", "edgeda.models", "edgeda.torch_backend"):
                require(module, "train", "running a network in torch")
        elif self.engine in PROVIDERS:
            require("onnxruntime", "cpu", "running a model on ONNX Runtime")
        elif self.engine == "openvino":
            require("openvino", "openvino", "running a model on OpenVINO")
        elif self.engine == "tensorrt":
            engine_module(Path(self.location))

    def open(self, threads: int, count: bool = True) -> Opened:
        """Open it to run on `threads` threads; `count` says whether to count its arithmetic too."""
        self.prepare()
        return self._open_network(threads, count) if self.engine == TORCH else self._open_file(threads, count)

    def layers(self) -> list[Layer]:
        """Cost of each layer; InputError where the format does not tell."""
        if self.engine == TORCH:
            self.prepare()
            network, size, _ = self._network()
            return torch_layers(network, size)
        path = Path(self.location)
        if path.suffix.lower() != ".onnx":
            raise InputError(f"{self.model}: layers are counted in networks and .onnx files; name the .onnx file")
        return onnx_layers(path)

    def _network(self) -> tuple[Any, int, Preprocessing | None]:
        models = require("edgeda.models", "train", "opening a network")
        if self.classes is not None and self.input_size is not None:
            network, _ = models.build_network(models.Architecture(self.location, self.classes))
            return network, self.input_size, None
        network, card = models.load_network(Path(self.location))
        return network, card.preprocessing.size, card.preprocessing

    def _open_network(self, threads: int, count: bool) -> Opened:
        began = time.perf_counter()
        network, size, preprocessing = self._network()
        backend = require("edgeda.torch_backend", "train", "running a network in torch").TorchBackend(
            network, None, threads, size
        )
        load_ms = (time.perf_counter() - began) * 1e3
        cost = torch_complexity(network, size) if count else None
        if preprocessing is not None:
            return Opened(backend, preprocessing, Path(self.location).stat().st_size / 1e6, load_ms, cost)
        size_mb = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) / 1e6
        note = "random weights; the size is that of the fp32 weights"
        return Opened(backend, None, size_mb, None, cost, note)

    def _open_file(self, threads: int, count: bool) -> Opened:
        path = Path(self.location)
        began = time.perf_counter()
        if self.engine in PROVIDERS and self.engine != "onnxruntime":
            backend: Backend = OnnxRuntimeBackend(path, threads, [PROVIDERS[self.engine], CPU_PROVIDER])
        else:
            backend = open_backend(path, self.engine, threads)
        load_ms = (time.perf_counter() - began) * 1e3
        cost, note = _file_complexity(path, backend) if count else (None, "")
        preprocessing = backend.manifest.preprocessing if backend.manifest else None
        return Opened(backend, preprocessing, model_size_mb(path), load_ms, cost, note)


def backbone_subject(name: str, classes: int, input_size: int) -> Subject:
    """A backbone by its timm name or alias, with random weights, in torch; InputError when unknown."""
    require("torch", "train", "opening a network")
    require("timm", "train", "opening a network")
    full_name = require("edgeda.models", "train", "opening a network").backbone_name(name)
    return Subject(full_name, TORCH, full_name, classes, input_size)


def weights_subject(label: str, weights: Path) -> Subject:
    """A network saved by edgeda, in torch, at its own input size."""
    return Subject(label, TORCH, str(weights))


def file_subject(label: str, path: Path, engine: str) -> Subject:
    """An exported model in one of `engines_for(path)`. `path` is a .onnx, .engine or .xml, or a folder with a .xml."""
    return Subject(label, engine, str(path))


def told_apart(named: Sequence[tuple[str, str]]) -> list[str]:
    """A label for each pair of label and location: the location where another one is called the same."""
    labels = [label for label, _ in named]
    while True:  # a location may be what something else is called
        places: dict[str, set[str]] = {}
        for label, (_, location) in zip(labels, named, strict=True):
            places.setdefault(label, set()).add(location)
        shared = [len(places[label]) > 1 for label in labels]
        better = [pair[1] if twice else label for label, pair, twice in zip(labels, named, shared, strict=True)]
        if better == labels:
            return labels
        labels = better


def engines_for(path: Path) -> tuple[str, ...]:
    """The engines that run an exported model; InputError for a file that none of them runs.

    Of ONNX Runtime, the CPU and every provider that its package claims to have; opening shows whether it runs.
    """
    suffix = ".xml" if path.is_dir() else path.suffix.lower()
    if suffix not in FILE_ENGINES:
        raise InputError(
            f"{path} is no exported model; give a .onnx file, a .engine file, a .xml file or an OpenVINO folder"
        )
    first, *rest = FILE_ENGINES[suffix]
    return (first, *(_accelerators() if first == "onnxruntime" else ()), *rest)


def not_run(model: str, usable: Sequence[str], asked: Sequence[str]) -> EdgedaError:
    """Why none of the engines `asked` for runs a model that the `usable` ones run: this machine, or its format."""
    lacking = [PROVIDERS[engine] for engine in asked if engine in PROVIDERS and "onnxruntime" in usable]
    if lacking:
        return MachineError(
            f"the ONNX Runtime of this machine has no {lacking[0]} for {model}; install a package that brings it "
            "(CUDA and TensorRT: onnxruntime-gpu; on a Jetson NVIDIA's own wheel of it)"
        )
    return InputError(f"{model} runs in {', '.join(dict.fromkeys(usable))}, not in {', '.join(asked)}")


def _accelerators() -> list[str]:
    try:
        available = require("onnxruntime", "cpu", "running a model on ONNX Runtime").get_available_providers()
    except EdgedaError:
        return []
    return [engine for engine, provider in PROVIDERS.items() if provider != CPU_PROVIDER and provider in available]


def model_files(path: Path) -> list[Path]:
    """All files of a model: with the weights and the manifest that ONNX, OpenVINO and TensorRT keep beside it."""
    if path.is_dir():
        return sorted(
            file for file in path.iterdir() if file.suffix in (".xml", ".bin") or file.name == "manifest.json"
        )
    beside = {
        ".xml": (path.with_suffix(".bin"), path.with_name("manifest.json")),
        ".engine": (path.with_suffix(".json"), path.with_name(path.name + ".json"), path.with_name("manifest.json")),
    }.get(path.suffix.lower(), (path.with_name(path.name + ".data"),))
    return [path, *(file for file in beside if file.is_file())]


def model_size_mb(path: Path) -> float:
    """Size on disk in 10^6 bytes, with the weights an ONNX or OpenVINO file keeps in a second file."""
    return sum(file.stat().st_size for file in model_files(path) if file.suffix != ".json" and file.is_file()) / 1e6


def _file_complexity(path: Path, backend: Backend) -> tuple[Complexity | None, str]:
    manifest: Any = backend.manifest
    reason = "its format is not counted"
    if path.suffix.lower() == ".onnx":
        try:
            return onnx_complexity(path, backend.input_shape[1]), ""
        except EdgedaError as error:
            reason = str(error).replace("; ", ", ")  # notes are joined by it
    if manifest and manifest.gmacs is not None and manifest.params_m is not None:
        return Complexity(manifest.gmacs, 2 * manifest.gmacs, manifest.params_m), ""
    return None, f"GMACs and parameters are not known: {reason}"


def subject_from(values: Mapping[str, Any]) -> Subject:
    """The inverse of `Subject.to_dict`."""
    return Subject(**values)
