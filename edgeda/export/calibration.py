"""The range of every activation on real images, by one of three rules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, did_you_mean, require
from edgeda.runtime.backends.onnx_runtime import session_options

if TYPE_CHECKING:
    from onnx import ModelProto

Range = tuple[float, float]
Ranges = Mapping[str, Range]
"""By tensor, the smallest and largest value that int8 has to hold."""
Counts = NDArray[np.int64]
BINS = 2048
KEPT_PERCENT = 99.99
_LEVELS = 128
"""Of int8 on one side of zero."""
_BATCH = 8


def calibrate(model: ModelProto, inputs: NDArray[Any], tensors: Iterable[str], calibrator: str) -> dict[str, Range]:
    """Ranges of `tensors` while ONNX Runtime runs `model` on `inputs` `(N, ...)`, at batches of eight.

    `calibrator` is `minmax` (everything seen), `percentile` (99.99 % of the values seen) or `entropy` (the
    threshold that loses least information, as TensorRT's calibrator). Two passes, the second into histograms.
    """
    if calibrator not in CALIBRATORS:
        raise InputError(f"--calibrator {calibrator}{did_you_mean(calibrator, CALIBRATORS)}")
    names = sorted(set(tensors))
    run = _probe(model, names)
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for values in run(inputs):
        lows = np.minimum(lows, [float(value.min()) for value in values])
        highs = np.maximum(highs, [float(value.max()) for value in values])
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise InputError("the network gives values that are not finite on the calibration images")
    if calibrator == "minmax":
        return {name: (float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}
    edges = [
        np.linspace(low, high if high > low else low + 1e-6, BINS + 1) for low, high in zip(lows, highs, strict=True)
    ]
    counts = np.zeros((len(names), BINS), np.int64)
    for values in run(inputs):
        for row, (value, edge) in enumerate(zip(values, edges, strict=True)):
            counts[row] += np.histogram(value, bins=BINS, range=(edge[0], edge[-1]))[0]
    rule = CALIBRATORS[calibrator]
    return {name: rule(row, edge) for name, row, edge in zip(names, counts, edges, strict=True)}


def minmax_range(counts: Counts, edges: NDArray[np.float64]) -> Range:
    """Everything seen."""
    return float(edges[0]), float(edges[-1])


def percentile_range(counts: Counts, edges: NDArray[np.float64]) -> Range:
    """The bins that hold all but (100 - KEPT_PERCENT) % of the values, half of those at either end."""
    share = np.cumsum(counts) / counts.sum()
    tail = (100 - KEPT_PERCENT) / 200
    low, high = int(np.searchsorted(share, tail, side="right")), int(np.searchsorted(share, 1 - tail))
    return float(edges[low]), float(edges[min(high, len(counts) - 1) + 1])


def entropy_range(counts: Counts, edges: NDArray[np.float64]) -> Range:
    """[-T, T] within what was seen, T of least KL(values clipped at T || the same in 128 levels) over |values|.

    Values that are zero are left out: after a ReLU they are half of all and say nothing of the threshold.
    """
    centres = np.abs((edges[:-1] + edges[1:]) / 2)
    most = float(max(abs(edges[0]), abs(edges[-1])))
    sizes = np.histogram(centres, bins=BINS, range=(0, most), weights=counts)[0]
    sizes[0] = 0
    if sizes.sum() == 0:
        return minmax_range(counts, edges)
    divergences = {stop: _divergence(sizes, stop) for stop in range(_LEVELS, BINS + 1, 16)}
    threshold = most * min(divergences, key=lambda stop: divergences[stop]) / BINS
    return max(float(edges[0]), -threshold), min(float(edges[-1]), threshold)


def _divergence(sizes: NDArray[np.float64], stop: int) -> float:
    clipped = sizes[:stop].copy()
    if clipped.sum() == 0:
        return float("inf")
    seen = clipped > 0
    level = np.arange(stop) * _LEVELS // stop
    held = np.bincount(level, weights=clipped, minlength=_LEVELS)
    members = np.bincount(level, weights=seen, minlength=_LEVELS)
    coarse = np.where(seen, (held / np.maximum(members, 1))[level], 0.0)
    clipped[-1] += sizes[stop:].sum()
    expected, told = clipped / clipped.sum(), coarse / coarse.sum()
    both = (expected > 0) & (told > 0)
    lost = float(expected[(expected > 0) & ~both].sum())  # what the coarse version says never happens
    return float((expected[both] * np.log(expected[both] / told[both])).sum()) + lost * 100


CALIBRATORS: dict[str, Callable[[Counts, NDArray[np.float64]], Range]] = {
    "minmax": minmax_range, "percentile": percentile_range, "entropy": entropy_range,
}  # fmt: skip


def run_graph(model: ModelProto, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """The first output of a graph for all `inputs` `(N, ...)`, in ONNX Runtime."""
    parts = [values[0] for values in _probe(model, [model.graph.output[0].name])(inputs)]
    return np.concatenate(parts)


def _probe(model: ModelProto, names: list[str]) -> Callable[[NDArray[Any]], Iterator[list[NDArray[Any]]]]:
    """Runs a model in batches and yields the values of tensors instead of its outputs."""
    ort = require("onnxruntime", "cpu", "calibrating a model")
    shapes = require("onnx.shape_inference", "train", "calibrating a model")
    probe = copy.deepcopy(model)
    source = probe.graph.input[0].name
    del probe.graph.output[:]
    for name in names:
        if name != source:
            probe.graph.output.add(name=name)
    content = shapes.infer_shapes(probe).SerializeToString()
    session = ort.InferenceSession(content, session_options(ort), providers=["CPUExecutionProvider"])
    given = [value.name for value in session.get_outputs()]

    def run(inputs: NDArray[Any]) -> Iterator[list[NDArray[Any]]]:
        for start in range(0, len(inputs), _BATCH):
            batch = inputs[start : start + _BATCH]
            found = dict(zip(given, session.run(given, {source: batch}), strict=True)) if given else {}
            found[source] = batch
            yield [found[name] for name in names]

    return run
