"""Which rows of a comparison nobody beats, and which one to ship under a latency budget."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeda.errors import InputError
from edgeda.guessing import like_guessing
from edgeda.report.summary import cautioned
from edgeda.report.tables import Row, format_value

LEVEL = 0.05
"""Two latencies this close, relative to each other, are level: what differs is the measurement."""
_BUDGET = re.compile(r"\s*([0-9.]+)\s*(us|ms|s)\s*")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def budget_ms(text: str) -> float:
    """`5ms`, `0.5s` or `800us` in milliseconds; InputError for anything else."""
    found = _BUDGET.fullmatch(text)
    try:
        value = float(found[1]) * _MILLISECONDS[found[2]] if found else math.nan
    except ValueError:
        value = math.nan
    if not found or not math.isfinite(value) or value <= 0:
        raise InputError(f"--budget {text}: expected the most a call may take, with its unit, such as 5ms or 800us")
    return value


def front(rows: Sequence[Row]) -> list[bool]:
    """For each row, whether it is on the Pareto front of `target_accuracy` (high) and `median_ms` (low).

    A row that lacks one of the two is not. Of rows level in both, all are; latencies within `LEVEL` are level.
    """
    points = [(row.get("target_accuracy"), row.get("median_ms")) for row in rows]
    known = [(accuracy, ms) for accuracy, ms in points if accuracy is not None and ms is not None]
    return [
        accuracy is not None
        and ms is not None
        and not any(_beats(better, quicker, accuracy, ms) for better, quicker in known)
        for accuracy, ms in points
    ]


def _beats(accuracy: float, ms: float, others_accuracy: float, others_ms: float) -> bool:
    """Whether one row is as good as the other in both and clearly better in one."""
    more_accurate, faster = accuracy > others_accuracy, ms * (1 + LEVEL) < others_ms
    return accuracy >= others_accuracy and ms <= others_ms * (1 + LEVEL) and (more_accurate or faster)


def ship(rows: Sequence[Row], budget: float, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The row to ship when a call may take `budget` ms by its median: `row` (its index or None), `nearest`, `sentence`.

    The most accurate on the target of those that fit, the faster of two level ones. Where no row's accuracy on
    the target is known, the label-free verdict in `summary` says which student, and its fastest form is taken. What is
    close to guessing is said to be.
    """
    summary = summary or {}
    verdict = summary.get("verdict")
    measured = [index for index, row in enumerate(rows) if row.get("median_ms") is not None]
    known = [index for index in measured if rows[index].get("target_accuracy") is not None]
    role = "student"
    if not known and isinstance(verdict, Mapping) and verdict.get("ship") == "source-only":
        role = "source_only"
    candidates = known or [index for index in measured if rows[index].get("network") == role]
    within = f"{format_value(budget)} ms"
    if not candidates:
        return {"budget_ms": budget, "row": None, "nearest": None, "sentence": f"within {within}: nothing was measured"}
    fitting = [index for index in candidates if rows[index]["median_ms"] <= budget]
    if not fitting:
        nearest = min(candidates, key=lambda index: rows[index]["median_ms"])
        said = f"within {within}: none fits; the nearest is {_told(rows[nearest])}"
        return {"budget_ms": budget, "row": None, "nearest": nearest, "sentence": said}
    best = min(fitting, key=lambda index: (-(rows[index].get("target_accuracy") or 0.0), rows[index]["median_ms"]))
    said = f"within {within}: ship {_told(rows[best])}"
    if not known:
        said += "; chosen by the label-free verdict, as no accuracy on the target is known"
    accuracy = rows[best].get("target_accuracy")
    if accuracy is not None and like_guessing(accuracy, len(summary.get("classes") or ())):
        said += "; that is close to guessing: train longer"
    elif accuracy is None and (caution := cautioned(summary)):
        said += f"; {caution}"
    p99 = rows[best].get("p99_ms")
    if p99 is not None and p99 > budget:
        said += f"; its p99 of {format_value(p99)} ms is over the budget"
    return {"budget_ms": budget, "row": best, "nearest": best, "sentence": said}


def _told(row: Row) -> str:
    accuracy = row.get("target_accuracy")
    right = f", {accuracy:.1f} % on the target" if accuracy is not None else ""
    return f"{row['model']} in {row['engine']}: {format_value(row['median_ms'])} ms{right}"
