"""A model in an engine, measured: a row for each batch size and number of concurrent streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import EdgedaError, MachineError
from edgeda.profiling.child import in_fresh_process
from edgeda.profiling.executed import onnxruntime_executed
from edgeda.profiling.latency import measure_latency
from edgeda.profiling.machine import ROOT
from edgeda.profiling.opening import (
    ENGINES,
    PROVIDERS,
    TORCH,
    Opened,
    Subject,
    backbone_subject,
    engines_for,
    file_subject,
    model_size_mb,
    weights_subject,
)
from edgeda.profiling.power import PowerMeter
from edgeda.profiling.stages import image_for, measure_stages
from edgeda.runtime.backends import Backend
from edgeda.runtime.manifest import FLOAT_NCHW
from edgeda.runtime.preprocessing import Preprocessing

__all__ = [
    "ENGINES",
    "TORCH",
    "Extras",
    "Opened",
    "Profile",
    "Subject",
    "backbone_subject",
    "engines_for",
    "file_subject",
    "input_for",
    "measure",
    "model_size_mb",
    "noise",
    "weights_subject",
]

QUERY = 8
"""Images in a query of MLPerf's MultiStream."""


@dataclass(frozen=True)
class Extras:
    """What to measure beside latency; nothing of it unless asked for."""

    streams: tuple[int, ...] = (1,)
    """Numbers of calls that run at once, each on an equal part of the threads."""
    memory: bool = False
    """Peak memory, in a fresh process."""
    end_to_end: bool = False
    """From an image file to a class, on `image`, or on a photograph that is installed."""
    image: Path | None = None
    power: bool = False
    root: Path = ROOT
    """The file system with the power sensors."""


@dataclass(frozen=True)
class Profile:
    """One row: a model in an engine at a batch size. None: not known or not measured, `note` says why.

    `gmacs` and `gflops` are per image, `size_mb` is 10^6 bytes on disk (of a bare backbone: of its
    fp32 weights), `min_ms` to `jitter_mad_ms` are of one call with `batch` images as in `Latency`,
    while `streams` calls run at once; `images_per_s` is sustained, of all streams. `precision` is what
    was really executed, as far as the engine tells. `peak_memory_mb` is the resident memory of a fresh
    process that opens the model and runs it once, `model_memory_mb` the part above Python and engine.
    `single_stream_p90_ms` and `multi_stream_p99_ms` are MLPerf's figures (of single images, of queries
    of 8), measured its way but not as long. `stages` and `power` are dictionaries of `measure_stages`
    and `summarize_power`. `finite` says whether all outputs were finite numbers.
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
    streams: int = 1
    min_ms: float | None = None
    mean_ms: float | None = None
    p95_ms: float | None = None
    jitter_mad_ms: float | None = None
    single_stream_p90_ms: float | None = None
    multi_stream_p99_ms: float | None = None
    load_ms: float | None = None
    peak_memory_mb: float | None = None
    model_memory_mb: float | None = None
    energy_mj_per_image: float | None = None
    finite: bool | None = None
    providers: dict[str, int] | None = field(default=None)
    stages: dict[str, Any] | None = field(default=None)
    power: dict[str, Any] | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


Measured = tuple[Profile, EdgedaError | None]
_PLAIN = Extras()


def measure(
    subject: Subject, batch_sizes: Sequence[int], threads: int, budget_s: float, extras: Extras = _PLAIN
) -> list[Measured]:
    """Open `subject` and time it at each batch size and number of streams, `budget_s` seconds each.

    A row that could not be measured stands there empty, the reason in its note, with the error beside it.
    """
    rows: list[Measured] = []
    for streams in sorted(set(extras.streams)):
        share = max(1, threads // streams)
        opened: list[Opened] = []
        for batch in batch_sizes:
            try:
                if not opened:
                    opened = [subject.open(share, count=not any(row.runs for row, _ in rows)) for _ in range(streams)]
                row = _timed(subject, opened, batch, share, budget_s, extras)
                if not any(earlier.runs for earlier, _ in rows):
                    row = _with_stages(_with_execution(row, subject, opened[0]), opened[0], budget_s, extras)
                rows.append((row, None))
            except EdgedaError as error:
                rows.append((Profile(subject.model, subject.engine, batch, streams=streams, note=str(error)), error))
                if not opened:
                    break
    return _with_memory(subject, _with_cost(rows), threads) if extras.memory else _with_cost(rows)


def _timed(
    subject: Subject, opened: Sequence[Opened], batch: int, threads: int, budget_s: float, extras: Extras
) -> Profile:
    first = opened[0]
    images = input_for(first.backend, batch)
    finite = bool(np.isfinite(first.backend(images)).all())
    with _power(extras) as meter:
        latency = measure_latency(
            *(_call(model.backend, images) for model in opened),
            budget_s=budget_s, began=meter.restart if meter else lambda: None,
        )  # fmt: skip
        power = meter.summary(latency.n * batch, latency.wall_s) if meter else None
    notes = [first.note, "" if finite else "its outputs are not finite"]
    _, height, width = first.backend.input_shape
    if height != width:
        notes.append(f"input {height} x {width}")
    cost = first.complexity
    return Profile(
        model=subject.model,
        engine=subject.engine,
        batch=batch,
        streams=len(opened),
        precision=first.backend.precision,
        input_size=height,
        gmacs=cost.gmacs if cost else None,
        gflops=cost.gflops if cost else None,
        params_m=cost.params_m if cost else None,
        size_mb=first.size_mb,
        load_ms=first.load_ms,
        min_ms=latency.min_ms,
        mean_ms=latency.mean_ms,
        median_ms=latency.median_ms,
        p90_ms=latency.p90_ms,
        p95_ms=latency.p95_ms,
        p99_ms=latency.p99_ms,
        jitter_mad_ms=latency.jitter_mad_ms,
        single_stream_p90_ms=latency.p90_ms if (batch, len(opened)) == (1, 1) else None,
        multi_stream_p99_ms=latency.p99_ms if (batch, len(opened)) == (QUERY, 1) else None,
        images_per_s=latency.images_per_s(batch),
        runs=latency.n,
        threads=threads,
        pressure=latency.pressure,
        clean=latency.clean,
        finite=finite,
        power=power,
        energy_mj_per_image=power["energy_mj_per_image"] if power else None,
        note="; ".join(note for note in notes if note),
    )


def _call(backend: Backend, images: NDArray[Any]) -> Any:
    return lambda: backend(images)


@contextlib.contextmanager
def _power(extras: Extras) -> Iterator[PowerMeter | None]:
    if not extras.power:
        yield None
        return
    with PowerMeter(extras.root) as meter:
        yield meter


def _with_execution(row: Profile, subject: Subject, opened: Opened) -> Profile:
    """With the precision and the providers that ONNX Runtime's own profiler names; other engines tell it at once."""
    if subject.engine not in PROVIDERS:
        return row
    providers = list(dict.fromkeys([PROVIDERS[subject.engine], PROVIDERS["onnxruntime"]]))
    images = input_for(opened.backend, getattr(opened.backend, "fixed_batch", None) or row.batch)
    try:
        executed = onnxruntime_executed(Path(subject.location), images, providers, row.threads or 1)
    except EdgedaError as error:
        return _noted(row, str(error))
    return replace(row, providers=dict(executed.providers), precision=executed.precision or row.precision)


def _with_stages(row: Profile, opened: Opened, budget_s: float, extras: Extras) -> Profile:
    """With the way from an image file to a class, in the first row of a subject."""
    if not extras.end_to_end:
        return row
    preprocessing = opened.preprocessing or Preprocessing(opened.backend.input_shape[1])
    try:
        stages = measure_stages(opened.backend, preprocessing, image_for(extras.image), budget_s)
    except EdgedaError as error:
        return _noted(row, f"not measured end to end: {error}")
    return replace(row, stages={**stages, "own_preprocessing": opened.preprocessing is not None})


def _noted(row: Profile, note: str) -> Profile:
    return replace(row, note="; ".join(filter(None, (row.note, note))))


def _with_cost(rows: list[Measured]) -> list[Measured]:
    """Arithmetic, precision and the notes on them are counted once, and hold for all rows of a subject."""
    if not rows:
        return rows
    first = next((row for row, _ in rows if row.runs), rows[0][0])
    kept = {name: getattr(first, name) for name in ("gmacs", "gflops", "params_m", "providers", "precision")}
    return [(replace(row, **kept) if row.runs else row, error) for row, error in rows]


def _with_memory(subject: Subject, rows: list[Measured], threads: int) -> list[Measured]:
    batches = sorted({row.batch for row, error in rows if error is None})
    if not batches:
        return rows
    request = {"task": "memory", "subject": subject.to_dict(), "threads": threads, "batches": batches}
    try:
        answer = in_fresh_process(request)
    except MachineError as error:
        return [(_noted(row, f"peak memory is not known: {error}"), failed) for row, failed in rows]
    remembered: list[Measured] = []
    for row, failed in rows:
        peak, before = answer["peak_mb"].get(str(row.batch)), answer["before_mb"]
        if row.streams == 1 and failed is None and peak is not None:
            row = replace(
                row, peak_memory_mb=peak, model_memory_mb=peak - before,
                load_ms=answer["load_ms"] if row.load_ms is not None else None,
            )  # fmt: skip
        remembered.append((row, failed))
    return remembered


def noise(batch: int, shape: tuple[int, int, int], layout: str = FLOAT_NCHW) -> NDArray[Any]:
    """The same random pixels every time, as a network's input `(B, C, H, W)`: values in [-2, 2].

    In another `layout` the pixels themselves, `(B, H, W, C)` for NHWC.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
    if layout == FLOAT_NCHW:
        return np.asarray(pixels / 63.75 - 2, np.float32)
    return pixels if "NCHW" in layout else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def input_for(backend: Backend, batch: int) -> NDArray[Any]:
    """`noise` of the shape and layout that a loaded model takes."""
    return noise(batch, backend.input_shape, backend.manifest.layout if backend.manifest else FLOAT_NCHW)
