"""Which rows of a comparison nobody beats, and which one to ship under a latency budget."""

from __future__ import annotations

import math
import re
import shlex
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


def ship(
    rows: Sequence[Row], budget: float, summaries: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The row to ship when a call may take `budget` ms by its median: `row` (its index or None), `nearest`, `sentence`.

    The most accurate on the target of those that fit, the faster of two level ones. `candidates` are those that fit
    without a known accuracy, the most promising first: they are said, but not shipped. Where no row's accuracy is
    known, the label-free verdict of each row's own run (in `summaries`, by run) says which student, and the fastest
    is taken. What is close to guessing is said to be.
    """
    summaries = summaries or {}
    measured = [at for at, row in enumerate(rows) if row.get("median_ms") is not None]
    known = [at for at in measured if rows[at].get("target_accuracy") is not None]
    labelled = {rows[at]["run"] for at in known}
    others = [
        at
        for at in measured
        if at not in known
        and rows[at].get("trained") is not False
        and (rows[at]["run"] in labelled or _taken(rows[at], summaries))
    ]
    within = f"within {format_value(budget)} ms"
    result: dict[str, Any] = {"budget_ms": budget, "row": None, "nearest": None, "candidates": []}
    if not known and not others:
        return {**result, "sentence": f"{within}: nothing that may be shipped was measured"}
    eligible = _fitting(rows, known or others, budget)
    candidates = result["candidates"] = _fitting(rows, others, budget) if known else []
    untold = _untold(rows, candidates, summaries, " more" if eligible else "") if candidates else ""
    if not eligible:
        nearest = min(known if candidates else [*known, *others], key=lambda at: rows[at]["median_ms"])
        said = f"{untold}; the nearest of known accuracy is" if untold else "none fits; the nearest is"
        return {**result, "nearest": nearest, "sentence": f"{within}: {said} {_told(rows[nearest])}"}
    best = eligible[0]
    said = f"{within}: ship {_told(rows[best])}"
    if not known:
        said += "; the fastest that the label-free verdict of its run takes, as no accuracy on the target is known"
    summary = summaries.get(rows[best]["run"], {})
    accuracy = rows[best].get("target_accuracy")
    if accuracy is not None and like_guessing(accuracy, len(summary.get("classes") or ())):
        said += "; that is close to guessing: train longer"
    elif accuracy is None and (caution := cautioned(summary)):
        said += f"; {caution}"
    p99 = rows[best].get("p99_ms")
    if p99 is not None and p99 > budget:
        said += f"; its p99 of {format_value(p99)} ms is over the budget"
    return {**result, "row": best, "nearest": best, "sentence": "; ".join(filter(None, (said, untold)))}


def _taken(row: Row, summaries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a row's network is the student that the label-free verdict takes, of every run that has it."""
    verdicts = [summaries.get(run, {}).get("verdict") or {} for run in (row["run"], *row.get("also_of", ()))]
    taken = ["source_only" if verdict.get("ship") == "source-only" else "student" for verdict in verdicts]
    return all(row.get("network") == role for role in taken)


def _fitting(rows: Sequence[Row], group: Sequence[int], budget: float) -> list[int]:
    """Those of `group` within the budget: by accuracy (of a row that has none, the best of its network), then speed."""

    def accuracy(row: Row) -> float:
        of = [row] if row.get("target_accuracy") is not None else [
            other for other in rows if (other["run"], other.get("network")) == (row["run"], row.get("network"))
        ]  # fmt: skip
        return max(other.get("target_accuracy") or 0.0 for other in of)

    fitting = [at for at in group if rows[at]["median_ms"] <= budget]
    return sorted(fitting, key=lambda at: (-accuracy(rows[at]), rows[at]["median_ms"]))


def _told(row: Row) -> str:
    accuracy = row.get("target_accuracy")
    right = f", {accuracy:.1f} % on the target" if accuracy is not None else ""
    return f"{row['model']} in {row['engine']}: {format_value(row['median_ms'])} ms{right}"


def _untold(
    rows: Sequence[Row], candidates: Sequence[int], summaries: Mapping[str, Mapping[str, Any]], more: str
) -> str:
    """How many rows fit without a known accuracy, which to try first, and the command that tells its accuracy."""
    first, count = rows[candidates[0]], len(candidates)
    data = summaries.get(first["run"], {}).get("target_test")
    role = f" --role {first['network']}" if first.get("network") in ("teacher", "source_only") else ""
    model = shlex.quote(first["file"]) if first.get("file") else shlex.quote(first["run"]) + role
    fit = f"1{more} row fits, but its" if count == 1 else f"{count}{more} rows fit, but their"
    try_first = "" if count == 1 else "the first to try is "
    return (
        f"{fit} accuracy on the target is not known: {try_first}{_told(first)} "
        f"(edgeda evaluate {model} --data {shlex.quote(data) if data else 'D'} tells)"
    )
