"""Which engine runs a file faster here: by trying, for a fraction of a second."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import EdgedaError
from edgeda.runtime.backends import Backend, available_engines, open_backend

log = logging.getLogger(__name__)

CPU_ENGINES = ("onnxruntime", "openvino")
BUDGET_S = 0.25
"""For each engine, after a first run that is not counted."""
_MOST_RUNS = 15


def open_fastest(path: Path, threads: int | None = None) -> Backend:
    """The model in the engine that runs it faster here; where one engine can, that one, unmeasured.

    An engine that cannot load the file is passed over, unless none can: then its error is raised.
    """
    engines = [name for name in available_engines() if name in CPU_ENGINES]
    if path.suffix.lower() != ".onnx" or len(engines) < 2:
        return open_backend(path, None, threads)
    loaded: list[Backend] = []
    failures: list[EdgedaError] = []
    for name in engines:
        try:
            loaded.append(open_backend(path, name, threads))
        except EdgedaError as error:
            failures.append(error)
    if not loaded:
        raise failures[0]
    if len(loaded) == 1:
        return loaded[0]
    took = {backend.name: milliseconds(backend) for backend in loaded}
    best = min(loaded, key=lambda backend: took[backend.name])
    log.debug("%s: %s", path.name, ", ".join(f"{name} {value:.2f} ms" for name, value in took.items()))
    return best


def milliseconds(backend: Backend) -> float:
    """Shortest time of one run on the smallest batch the model takes, which other processes disturb least."""
    batch = example(backend)
    backend(batch)
    best, ends = float("inf"), time.perf_counter() + BUDGET_S
    for _ in range(_MOST_RUNS):
        began = time.perf_counter()
        backend(batch)
        now = time.perf_counter()
        best = min(best, now - began)
        if now > ends:
            break
    return best * 1e3


def example(backend: Backend) -> NDArray[Any]:
    """A batch of black or grey images as the model takes them."""
    channels, height, width = backend.input_shape
    count = getattr(backend, "fixed_batch", None) or 1
    kind, order = (backend.manifest.layout if backend.manifest else "float32 NCHW").split()[:2]
    shape = (height, width, channels) if order == "NHWC" else (channels, height, width)
    return np.zeros((count, *shape), np.dtype(kind))
