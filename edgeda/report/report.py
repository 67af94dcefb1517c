"""`edgeda report`: everything about a run on one page that needs no network, the verdict first."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeda.artifacts import METRICS, SUMMARY, RunDirectory
from edgeda.errors import EdgedaError, InputError
from edgeda.profiling.latency import Latency, measure_latency
from edgeda.profiling.machine import compute_threads, machine
from edgeda.profiling.subjects import input_for, weights_subject
from edgeda.report.compare import compare_runs
from edgeda.report.evidence import Evidence, collect
from edgeda.report.page import page, write_page
from edgeda.report.plots import comparison_section, cost_section, features_section, training_section
from edgeda.report.sections import accuracy_section, head_section, headline, recipe_section, samples_section
from edgeda.run_records import check_epoch
from edgeda.whole_file import check_writable

log = logging.getLogger(__name__)

LIMIT_MB = 5.0


def write_report(
    run: RunDirectory, out: Path | None = None, *, seconds: float = 0.5, threads: int | None = None
) -> dict[str, Any]:
    """Write the page of `run` to `out` (RUN/report.html) and return its `path`, `size_mb`, `headline` and `missing`.

    A run that is not finished, or whose images or weights are gone, is reported as far as it goes; each thing that is
    missing is a warning on the log, and on the page. `seconds` is how long the latency of each network is measured.
    """
    path = out or run.path / "report.html"
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name the file to write")
    check_writable(path.parent, "--out")
    summary = run.summary() if (run.path / SUMMARY).is_file() else {}
    history = read_history(run)
    found = collect(run, finished=bool(summary))
    compared, calls = _measured(run, summary, found, seconds, threads)
    for line in found.missing:
        log.warning("%s", line)
    name = run.path.resolve().name
    body = [
        head_section(name, summary, history, found),
        accuracy_section(summary, found),
        samples_section(summary, found),
        features_section(summary, found),
        training_section(summary, history, found),
        cost_section(found, calls),
        comparison_section(compared),
        recipe_section(summary, found, machine()),
    ]
    document = page(f"edgeda report: {name}", body)
    size_mb = len(document.encode("utf-8")) / 1e6
    if size_mb >= LIMIT_MB:
        log.warning("the report is %.1f MB: more classes or layers than it is made for", size_mb)
    write_page(path, document)
    said = headline(summary, history)
    return {"run": str(run.path), "path": str(path), "size_mb": size_mb, "headline": said, "missing": found.missing}


def read_history(run: RunDirectory) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl; a line that is cut short or is no epoch ends it."""
    history: list[dict[str, Any]] = []
    try:
        for line in (run.path / METRICS).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            check_epoch(record)
            history.append(record)
    except (OSError, ValueError, RecursionError):
        pass
    return history


def _measured(
    run: RunDirectory, summary: dict[str, Any], found: Evidence, seconds: float, threads: int | None
) -> tuple[dict[str, Any] | None, tuple[list[float], Latency] | None]:
    """The comparison of the run's networks, and single calls of its student with their summary."""
    if not summary:
        return None, None
    try:
        compared = compare_runs([run], seconds=seconds, threads=threads)
        calls = single_calls(run, seconds, threads or compute_threads())
    except EdgedaError as error:
        found.missing.append(f"latency was not measured: {error}")
        return None, None
    return compared, calls


def single_calls(run: RunDirectory, seconds: float, threads: int) -> tuple[list[float], Latency]:
    """Milliseconds of each call of the student in torch at batch 1, warm-up left out, and their summary."""
    opened = weights_subject("student", run.weights()).open(threads)
    images = input_for(opened.backend, 1)
    return timed_calls(lambda: opened.backend(images), seconds)


def timed_calls(call: Callable[[], object], seconds: float) -> tuple[list[float], Latency]:
    """`measure_latency` of `call` with the durations of the calls that it summarized, in ms."""
    durations: list[float] = []

    def timed() -> None:
        begun = time.perf_counter_ns()
        call()
        durations.append((time.perf_counter_ns() - begun) / 1e6)

    latency = measure_latency(timed, budget_s=seconds)
    return durations[-latency.n :], latency
