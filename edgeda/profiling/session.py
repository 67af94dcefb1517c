"""`edgeda profile` as one function: everything that was asked for of several models, in one dictionary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeda.errors import EdgedaError, InputError, MachineError
from edgeda.profiling import Extras, Profile, check_engines, check_request, find_subjects, profile_subjects
from edgeda.profiling.child import in_fresh_process
from edgeda.profiling.device import Cargo, cargo, profile_on
from edgeda.profiling.latency import cpu_pressure
from edgeda.profiling.layers import Layer
from edgeda.profiling.machine import compute_threads, machine
from edgeda.profiling.onnx_graph import onnx_complexity
from edgeda.profiling.opening import TORCH, Subject, file_subject, told_apart
from edgeda.profiling.power import PowerMeter
from edgeda.profiling.roofline import PRECISIONS, against, estimate, find_devices, this_machine

log = logging.getLogger(__name__)

Result = dict[str, Any]


def profile(
    models: Sequence[str | None],
    *,
    classes: int = 1000,
    input_size: int = 224,
    batch_sizes: Sequence[int] = (1,),
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = 1.0,
    extras: Extras = Extras(),  # noqa: B008 - frozen
    layers: bool = False,
    estimate_for: Sequence[str] | None = None,
    device: str | None = None,
    remote_python: str = "python3",
    timeout_s: float = 900.0,
) -> Result:
    """Measure models here, or on `device` (`ssh://user@host[:port]`), as `profile_model` and `Extras` say.

    Each row is measured for `seconds`. Returns `rows` (dictionaries of `Profile`), `machine` (where it was measured),
    `state` (CPU pressure before and after, and whether all rows are clean), `device`, and where asked for: `layers` by
    model; `estimates` for the devices in `estimate_for` by name; `check`, the same estimate for this machine from
    measured peaks beside what was measured.
    """
    check_request(batch_sizes, threads, extras)
    check_engines(engines)
    devices = None if estimate_for is None else find_devices(estimate_for)
    costs: list[tuple[Subject, list[Layer]]] = []
    if device is not None:
        loads = cargo(models)
        subjects = [file_subject(load.label, load.files[0], "onnxruntime") for load in loads]
        if layers or devices is not None:
            costs = _layers(subjects)
        measured = profile_on(
            device, loads, batch_sizes=batch_sizes, engines=engines, threads=threads, budget_s=seconds, extras=extras,
            python=remote_python, timeout_s=timeout_s,
        )  # fmt: skip
        rows = [_counted(Profile(**row), loads) for row in measured["rows"]]
    else:
        found = [subject for name in models for subject in find_subjects(name, engines, classes, input_size)]
        labels = told_apart([(subject.model, subject.location) for subject in found])
        subjects = [replace(subject, model=label) for subject, label in zip(found, labels, strict=True)]
        if layers or devices is not None:
            costs = _layers(subjects)
        if extras.power:
            PowerMeter(extras.root)
        before = cpu_pressure()
        rows = profile_subjects(subjects, batch_sizes, engines is not None, threads, seconds, extras)
        measured = {
            "machine": machine(extras.root), "pressure_before": before, "pressure_after": cpu_pressure(),
        }  # fmt: skip
    known = [row.clean for row in rows if row.clean is not None]
    result: Result = {
        "rows": [row.to_dict() for row in rows],
        "machine": measured["machine"],
        "device": device,
        "state": {
            "pressure_before": measured["pressure_before"],
            "pressure_after": measured["pressure_after"],
            "clean": all(known) if known else None,
        },
    }
    if layers:
        result["layers"] = {subject.model: [layer.to_dict() for layer in found] for subject, found in costs}
    if devices is not None:
        result["estimates"] = [
            estimate(subject.model, found, target, precision)
            for subject, found in costs
            for target in devices
            for precision in (PRECISIONS if subject.engine == TORCH else (None,))
        ]
        if device is None:
            try:
                result["check"] = _check_here(rows, costs, threads or compute_threads())
            except MachineError as error:  # what was measured is not lost for it
                log.warning("this machine's peaks are not known: %s", error)
    return result


def _counted(row: Profile, loads: Sequence[Cargo]) -> Profile:
    """With the arithmetic counted here: a device need not have the onnx package."""
    path = next((load.files[0] for load in loads if load.label == row.model), None)
    if path is None or path.suffix.lower() != ".onnx" or not row.runs or row.gmacs is not None:
        return row
    try:
        cost = onnx_complexity(path, row.input_size)
    except EdgedaError:
        return row
    notes = [note for note in row.note.split("; ") if not note.startswith("GMACs and parameters are not known")]
    return replace(row, gmacs=cost.gmacs, gflops=cost.gflops, params_m=cost.params_m, note="; ".join(notes))


def _layers(subjects: Sequence[Subject]) -> list[tuple[Subject, list[Layer]]]:
    """Layers of each model once, whichever engines run it; InputError when none of the models tells any."""
    found: list[tuple[Subject, list[Layer]]] = []
    failures: list[EdgedaError] = []
    for subject in {subject.location: subject for subject in reversed(subjects)}.values():
        try:
            if subject.engine == TORCH or Path(subject.location).suffix.lower() == ".onnx":
                found.append((subject, subject.layers()))
        except EdgedaError as error:
            failures.append(error)
    if not found:
        raise failures[0] if failures else InputError(
            "layers are counted in networks and .onnx files; name the .onnx file that this model was made from"
        )  # fmt: skip
    return found[::-1]


def _check_here(rows: Sequence[Profile], costs: Sequence[tuple[Subject, list[Layer]]], threads: int) -> Result:
    """Peaks of this machine, and the estimate made of them beside each measured single image."""
    peaks = in_fresh_process({"task": "peaks", "threads": threads})
    here = this_machine(peaks)
    layers = {subject.model: found for subject, found in costs}
    compared = []
    for row in rows:
        if row.median_ms is None or (row.batch, row.streams) != (1, 1) or row.model not in layers:
            continue
        if row.precision in here.tera_ops:
            estimated = estimate(row.model, layers[row.model], here, row.precision)
            compared.append({"engine": row.engine, **against(row.median_ms, estimated)})
    return {"peaks": peaks, "rows": compared}
