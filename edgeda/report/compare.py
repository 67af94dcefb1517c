"""Teacher, student and source-only student of a run side by side: accuracy, arithmetic, size, speed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeda.artifacts import RunDirectory
from edgeda.errors import EdgedaError, InputError
from edgeda.profiling import exported_subjects
from edgeda.profiling.machine import compute_threads, machine, machine_line
from edgeda.profiling.subjects import Subject, measure, weights_subject
from edgeda.report.profiles import caveats
from edgeda.report.tables import Column, Row, format_value, text_table

COMPARE_COLUMNS = (
    Column("model", "model"),
    Column("engine", "engine"),
    Column("target_accuracy", "target", "%", 1),
    Column("source_accuracy", "source", "%", 1),
    Column("gmacs", "GMACs"),
    Column("params_m", "params", "M"),
    Column("size_mb", "size", "MB"),
    Column("median_ms", "median", "ms"),
    Column("p90_ms", "p90", "ms"),
    Column("images_per_s", "images", "per s"),
)
ROLE_NAMES = {"teacher": "teacher", "student": "student", "source_only": "source-only student"}
_LEVEL = 0.05


def compare_run(run: RunDirectory, *, budget_s: float = 0.5, threads: int | None = None) -> dict[str, Any]:
    """Measure a finished run's networks in torch and its exports in their engines, all in one go.

    Each row is a `Profile` at batch 1 with `role`, and `target_accuracy` and `source_accuracy` in
    percent (None where the run had no such labels; of an export, what it measured itself on all
    target-test images). Besides `rows`: `conclusion` in one sentence, `notes`, `machine` and `machine_line`.
    Raises InputError when the run is not finished, and the first failure when nothing could be measured.
    """
    summary = run.summary()
    subjects: list[tuple[str, Subject]] = [
        (role, weights_subject(name, run.weights(role)))
        for role, name in ROLE_NAMES.items()
        if run.weights(role).is_file() or accuracy(summary, role, "source") is not None
    ]
    subjects += [("export", subject) for subject in exported_subjects(run)]
    if not subjects:
        raise InputError(f"the run {run.path} holds neither networks nor exports; there is nothing to compare")
    rows: list[dict[str, Any]] = []
    errors: list[EdgedaError] = []
    for role, subject in subjects:
        ((profile, error),) = measure(subject, (1,), threads or compute_threads(), budget_s)
        accuracies = {f"{domain}_accuracy": accuracy(summary, role, domain) for domain in ("target", "source")}
        if role == "export":
            accuracies["target_accuracy"] = _exported_accuracy(run.exports / subject.model, summary)
        rows.append({"role": role, **profile.to_dict(), **accuracies})
        errors += [error] if error else []
    if len(errors) == len(rows):
        raise errors[0]
    described = machine()
    return {
        "run": str(run.path),
        "verdict": summary.get("verdict"),
        "rows": rows,
        "conclusion": conclusion(rows),
        "notes": caveats(rows),
        "machine": described,
        "machine_line": machine_line(described),
    }


def accuracy(summary: Mapping[str, Any], role: str, domain: str) -> float | None:
    """Percent of a role on `target` (at the selected epoch) or `source`, from a summary.json; None when not there."""
    value: Any = summary.get("accuracy")
    for key in (role, domain):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        value = value.get("selected")
    return float(value) if isinstance(value, (int, float)) else None


def _exported_accuracy(path: Path, summary: Mapping[str, Any]) -> float | None:
    """What the manifest beside an export says of its accuracy, if that was on all target-test images."""
    try:
        measured = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8")).get("accuracy")
        everything = measured["images"] == summary["images"]["target_test"]
        return float(measured["exported"]) if everything else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def conclusion(rows: Sequence[Row]) -> str:
    """What the rows of `compare_run` say, in one sentence; what was not measured is not claimed."""
    by_role = {role: next((row for row in rows if row["role"] == role), {}) for role in ROLE_NAMES}
    parts = [_on_target(by_role), _arithmetic(by_role), _fastest(rows, by_role["teacher"])]
    return "; ".join(part for part in parts if part) + "."


def compare_text(compared: Mapping[str, Any], width: int = 80) -> str:
    """The result of `compare_run` as text: table, conclusion, notes, machine."""
    lines = [f"run {compared['run']}", text_table(compared["rows"], COMPARE_COLUMNS, width), "", compared["conclusion"]]
    verdict = compared.get("verdict")
    if isinstance(verdict, Mapping):
        lines.append(f"verdict (label-free): ship the {verdict.get('ship')} student: {verdict.get('reason')}")
    lines += compared["notes"]
    return "\n".join([*lines, f"machine: {compared['machine_line']}"])


def _on_target(by_role: Mapping[str, Row]) -> str:
    student, teacher, source_only = (
        by_role[role].get("target_accuracy") for role in ("student", "teacher", "source_only")
    )
    if student is None:
        return "accuracy on the target is not known, as the run had no target labels"
    said = f"the adapted student reaches {student:.1f} % on the target"
    if source_only is not None:
        said = f"the adapted student is {_points(student, source_only)} the source-only student on the target"
        if student < source_only - _LEVEL:
            said += " (keep the source-only student)"
    if teacher is not None:
        said += f" and {_points(student, teacher)} the teacher"
    return said


def _points(value: float, other: float) -> str:
    gap = value - other
    if abs(gap) <= _LEVEL:
        return "level with"
    return f"{gap:+.1f} points over" if gap > 0 else f"{-gap:.1f} points below"


def _arithmetic(by_role: Mapping[str, Row]) -> str:
    student, teacher = by_role["student"].get("gmacs"), by_role["teacher"].get("gmacs")
    if not student or not teacher:
        return ""
    return f"the student takes {_times(teacher / student, 'fewer', 'more')} GMACs than the teacher"


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{format_value(ratio)}x {better}" if ratio >= 1 else f"{format_value(1 / ratio)}x {worse}"


def _fastest(rows: Sequence[Row], teacher: Row) -> str:
    candidates = [row for row in rows if row["role"] in ("student", "export") and row["median_ms"] is not None]
    if not candidates:
        return ""
    best = min(candidates, key=lambda row: float(row["median_ms"]))
    about = "about " if best.get("clean") is False or teacher.get("clean") is False else ""
    said = f"fastest here: {best['model']} in {best['engine']}, {about}{format_value(best['median_ms'])} ms an image"
    if teacher.get("median_ms") is None:
        return said
    ratio = teacher["median_ms"] / best["median_ms"]
    return f"{said}, {about}{_times(ratio, 'faster', 'slower')} than the teacher in {teacher['engine']}"
