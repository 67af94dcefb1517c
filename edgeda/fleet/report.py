"""A fleet as a table, as text and as one self-contained HTML page."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeda.errors import from_os_error
from edgeda.report.page import page as document
from edgeda.report.page import paragraph, section, table
from edgeda.report.svg import escape
from edgeda.report.tables import Column, text_table
from edgeda.whole_file import write_text

Record = dict[str, Any]

COLUMNS = (
    Column("camera", "camera"),
    Column("status", "status"),
    Column("verdict", "verdict"),
    Column("student", "adapted", "%", 1),
    Column("source_only", "source-only", "%", 1),
    Column("shift", "shift", "", 2),
    Column("drift", "drift", "", 2),
    Column("seconds", "cost", "s", 1),
    Column("note", "note"),
)
SILENT_S = 900
"""Seconds without a sign of life after which a running camera is called silent."""
SHOWN = 2000
"""Rows of one verdict on the page; fleet.json has them all."""
LEGEND = (
    "Shift: how far a camera's images are from the source's; drift: how far they are today from those its model was "
    "adapted to, where --check-drift has looked. Both are Kolmogorov-Smirnov distances, the largest of light, contrast "
    "and detail (drift: also of what the model says); 0: alike, 1: nothing in common."
)
NOT_READY = ", not ready to ship"
"""After the verdict on a student that is close to guessing."""
ORDER = (
    "ship adapted", "ship source-only", f"adapted{NOT_READY}", f"source-only{NOT_READY}", "running", "waiting",
    "stopped", "failed",
)  # fmt: skip


def result_of(about: Mapping[str, Any], records: Mapping[str, Record]) -> Record:
    """`cameras` with a row each, and `counts` by status and by verdict, how many are `ready` to ship; JSON values."""
    rows = [_row(name, about["cameras"][name], record) for name, record in records.items()]
    return {
        "name": about["name"], "out": about["out"], "source": about["source"], "cameras": rows,
        "counts": dict(Counter(row["status"] for row in rows)),
        "verdicts": dict(Counter(row["verdict"] for row in rows if row["verdict"])),
        "ready": sum(1 for row in rows if row["ready"]),
        "cost_s": round(sum(row["seconds"] or 0.0 for row in rows), 1),
    }  # fmt: skip


def _row(name: str, target: str, record: Record) -> Record:
    accuracy = record.get("accuracy") or {}
    status = record["status"]
    note = _note(record)
    drift = record.get("drift") or {}
    if status == "running":
        note = f"{record.get('stage', 'starting')}, epoch {record.get('epoch', 0)} on {record['node']}"
        silent = time.time() - record["heard"]
        if silent > SILENT_S:
            note += f"; no sign of life for {silent / 60:.0f} minutes"
    return {
        "camera": name, "target": target, "status": status, "verdict": record.get("verdict"),
        "caveat": record.get("caveat"), "ready": bool(record.get("verdict")) and not record.get("caveat"),
        "student": accuracy.get("student"), "source_only": accuracy.get("source_only"),
        "shift": (record.get("shift") or {}).get("distance"), "drift": drift.get("distance"),
        "drifted": drift.get("drifted"), "served_by": record.get("served_by"), "group": record.get("group"),
        "seconds": record.get("seconds"), "node": record.get("node"), "attempt": record.get("attempt"),
        "model": record.get("model"), "note": note,
    }  # fmt: skip


def verdict_words(found: Record) -> str:
    """What is to be done with the student of a record or row that has a verdict."""
    return f"{found['verdict']}{NOT_READY}" if found.get("caveat") else f"ship {found['verdict']}"


def _shown(rows: Sequence[Record]) -> list[Record]:
    """Rows as a table shows them: the verdict in words."""
    return [{**row, "verdict": row["verdict"] and verdict_words(row)} for row in rows]


def _note(record: Record) -> str:
    """What is worth saying of a camera in words."""
    parts = [record.get("reason") or record.get("why") or ""]
    if record.get("caveat"):
        parts.insert(0, f"not ready to ship: {record['caveat']}")
    group, drift = record.get("group"), record.get("drift")
    if group and record.get("served_by"):
        parts.insert(
            0, f"served by {group['of']}'s student (distance {group['distance']}, cost {group['cost']} points)"
        )
    elif group:
        parts.append(f"looks like {group['of']}, whose student does not suit it (cost {group['cost']} points)")
    if drift and drift["drifted"]:
        parts.insert(0, f"drifted by {drift['when']}: {drift['statistic']} {drift['distance']:.2f} apart, more than "
                        f"{drift['threshold']:.2f}: adapt it again")  # fmt: skip
    return "; ".join(part for part in parts if part)


def fleet_text(result: Record, width: int) -> str:
    """The table, and what became of how many."""
    counted = ", ".join(f"{count} {status}" for status, count in result["counts"].items())
    judged = sum(result["verdicts"].values())
    verdicts = f"{result['ready']} of {judged} ready to ship" if judged else "no verdict yet"
    ready = Counter(row["verdict"] for row in result["cameras"] if row["ready"])
    verdicts += f" ({', '.join(f'{count} {what}' for what, count in ready.items())})" if ready else ""
    served = sum(1 for row in result["cameras"] if row["served_by"])
    verdicts += f"; {served} served by another camera's student" if served else ""
    lines = ["", text_table(_shown(result["cameras"]), COLUMNS, width), "", f"{counted}; {verdicts}"]
    written = f"page: {result['out']}/fleet.html; each camera's model: fleet.json"
    return "\n".join([*lines, f"{result['cost_s']:.0f} s of work; {written}"])


def failed_line(result: Record) -> str:
    """One line for the end of a command with failed cameras."""
    failed = [row for row in result["cameras"] if row["status"] == "failed"]
    said = f"{len(failed)} of {len(result['cameras'])} cameras failed: {failed[0]['camera']}: {failed[0]['note']}"
    return f"{said}; `edgeda fleet` with the same recipe and --out tries again what failed"


def write_report(out: Path, result: Record) -> Record:
    """Write fleet.json and fleet.html in `out`; returns the result."""
    try:
        write_text(out / "fleet.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_text(out / "fleet.html", page(result))
    except OSError as error:
        raise from_os_error(error, f"writing the report in {out}") from error
    return result


def page(result: Record) -> str:
    """One HTML page without anything from elsewhere: cameras by verdict."""
    groups: dict[str, list[Record]] = {}
    for row in _shown(result["cameras"]):
        groups.setdefault(row["verdict"] or row["status"], []).append(row)
    text = (
        f"{len(result['cameras'])} cameras from the source {result['source']}; {result['cost_s']:.0f} s of work. "
        "Accuracies: labelled images of the camera, epoch selected without them; verdicts use no labels. " + LEGEND
    )
    parts = [f"<h1>{escape(result['name'])}</h1>", paragraph(text)]
    for group in sorted(groups, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        more = len(groups[group]) - SHOWN
        rest = paragraph(f"and {more} more in fleet.json") if more > 0 else ""
        parts.append(section(f"{group} ({len(groups[group])})", table(groups[group][:SHOWN], COLUMNS), rest))
    return document(result["name"], parts)
