"""What gets measured: a network in torch or a model file in an engine, opened the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import EdgedaError, InputError, require
from edgeda.profiling.complexity import Complexity, onnx_complexity, torch_complexity
from edgeda.profiling.latency import measure_latency
from edgeda.runtime.backends import Backend, open_backend
from edgeda.runtime.manifest import FLOAT_NCHW

TORCH = "torch"
FILE_ENGINES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}
"""What runs which kind of file, in the order in which it is tried."""


@dataclass(frozen=True)
class Profile:
    """One row: a model in an engine at a batch size. None: not known or not measured, `note` says why.

    `gmacs` and `gflops` are per image, `size_mb` is 10^6 bytes on disk (of a bare backbone: of its
    fp32 weights), `median_ms` to `p99_ms` are of one call with `batch` images, `images_per_s` is
    sustained, `pressure` and `clean` are as in `Latency`.
    """

    model: str
    engine: str
    batch: int
    precision: str | None = None
    input_size: int | None = None
    gmacs: float | None = None
    gflops: float | None = None
    params_m: float | None = None
    size_mb: float | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    runs: int = 0
    threads: int | None = None
    pressure: float | None = None
    clean: bool | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Opened:
    """A model ready to run, and what is known of it without running it."""

    backend: Backend
    complexity: Complexity | None
    size_mb: float
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """A model in an engine, not opened yet: opening may fail, and takes memory."""

    model: str
    engine: str
    open: Callable[[int], Opened]
    """Opens it to run on that many threads."""


def backbone_subject(name: str, classes: int, input_size: int) -> Subject:
    """A backbone by its timm name or alias, with random weights, in torch; InputError when unknown."""
    models = _models()
    full_name = models.backbone_name(name)

    def opened(threads: int) -> Opened:
        network, _ = models.build_network(models.Architecture(full_name, classes))
        size_mb = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) / 1e6
        note = "random weights; the size is that of the fp32 weights"
        return _open_network(network, input_size, size_mb, threads, note)

    return Subject(full_name, TORCH, opened)


def weights_subject(label: str, weights: Path) -> Subject:
    """A network saved by edgeda, in torch, at its own input size."""

    def opened(threads: int) -> Opened:
        network, card = _models().load_network(weights)
        return _open_network(network, card.preprocessing.size, weights.stat().st_size / 1e6, threads)

    return Subject(label, TORCH, opened)


def file_subject(label: str, path: Path, engine: str) -> Subject:
    """An exported model, in `onnxruntime` or `openvino`. `path` is a .onnx, a .xml or a folder with one .xml."""

    def opened(threads: int) -> Opened:
        backend = open_backend(path, engine, threads)
        complexity, note = _file_complexity(path, backend)
        return Opened(backend, complexity, model_size_mb(path), note)

    return Subject(label, engine, opened)


def engines_for(path: Path) -> tuple[str, ...]:
    """The engines that run an exported model; InputError for a file that none of them runs."""
    suffix = ".xml" if path.is_dir() else path.suffix.lower()
    if suffix not in FILE_ENGINES:
        raise InputError(f"{path} is no exported model; give a .onnx file, a .xml file or an OpenVINO folder")
    return FILE_ENGINES[suffix]


def model_size_mb(path: Path) -> float:
    """Size on disk in 10^6 bytes, with the weights an ONNX or OpenVINO file keeps in a second file."""
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in (".xml", ".bin")]
    else:
        beside = path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(path.name + ".data")
        files = [path, beside]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def measure(
    subject: Subject, batch_sizes: Sequence[int], threads: int, budget_s: float
) -> list[tuple[Profile, EdgedaError | None]]:
    """Open `subject` and time it at each batch size, `budget_s` seconds each.

    A row that could not be measured stands there empty, the reason in its note, with the error beside it.
    """
    rows: list[tuple[Profile, EdgedaError | None]] = []
    opened: Opened | None = None
    for batch in batch_sizes:
        try:
            opened = opened or subject.open(threads)
            rows.append((_timed(subject, opened, batch, threads, budget_s), None))
        except EdgedaError as error:
            rows.append((Profile(subject.model, subject.engine, batch, note=str(error)), error))
            if opened is None:
                break
    return rows


def _timed(subject: Subject, opened: Opened, batch: int, threads: int, budget_s: float) -> Profile:
    backend = opened.backend
    images = noise(batch, backend.input_shape, backend.manifest.layout if backend.manifest else FLOAT_NCHW)
    finite = bool(np.isfinite(backend(images)).all())
    latency = measure_latency(lambda: backend(images), budget_s=budget_s)
    notes = [opened.note, "" if finite else "its outputs are not finite"]
    _, height, width = backend.input_shape
    if height != width:
        notes.append(f"input {height} x {width}")
    cost = opened.complexity
    return Profile(
        model=subject.model,
        engine=backend.name,
        batch=batch,
        precision=backend.precision,
        input_size=height,
        gmacs=cost.gmacs if cost else None,
        gflops=cost.gflops if cost else None,
        params_m=cost.params_m if cost else None,
        size_mb=opened.size_mb,
        median_ms=latency.median_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        images_per_s=latency.images_per_s(batch),
        runs=latency.n,
        threads=threads,
        pressure=latency.pressure,
        clean=latency.clean,
        note="; ".join(note for note in notes if note),
    )


def noise(batch: int, shape: tuple[int, int, int], layout: str = FLOAT_NCHW) -> NDArray[Any]:
    """The same random pixels every time, as a network's input `(B, C, H, W)`: values in [-2, 2].

    In another `layout` the pixels themselves, `(B, H, W, C)` for NHWC.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
    if layout == FLOAT_NCHW:
        return np.asarray(pixels / 63.75 - 2, np.float32)
    return pixels if "NCHW" in layout else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _models() -> Any:
    require("torch", "train", "opening a network")
    require("timm", "train", "opening a network")
    return require("edgeda.models", "train", "opening a network")


def _open_network(network: Any, input_size: int, size_mb: float, threads: int, note: str = "") -> Opened:
    torch_backend = require("edgeda.torch_backend", "train", "running a network in torch")
    complexity = torch_complexity(network, input_size)
    backend: Backend = torch_backend.TorchBackend(network, None, threads, input_size)
    return Opened(backend, complexity, size_mb, note)


def _file_complexity(path: Path, backend: Backend) -> tuple[Complexity | None, str]:
    manifest = backend.manifest
    reason = "its format is not counted"
    if path.suffix.lower() == ".onnx":
        try:
            return onnx_complexity(path, backend.input_shape[1]), ""
        except EdgedaError as error:
            reason = str(error)
    if manifest and manifest.gmacs is not None and manifest.params_m is not None:
        return Complexity(manifest.gmacs, 2 * manifest.gmacs, manifest.params_m), ""
    return None, f"GMACs and parameters are not known: {reason}"
