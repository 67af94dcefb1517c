"""The rows of a comparison: what a run holds, measured in its engines, with the accuracy each was found to have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeda.artifacts import ROLES, RunDirectory, sha256
from edgeda.errors import EdgedaError, InputError
from edgeda.profiling import exported_subjects
from edgeda.profiling.subjects import Subject, measure, weights_subject
from edgeda.report.summary import reference_student
from edgeda.report.tables import Row
from edgeda.runtime.backends.engine_file import read_sidecar
from edgeda.runtime.strict_json import parse_json

NETWORKS = ("teacher", "student", "source_only")
"""Of a run, in the order of its rows."""
KINDS = ("selected", "last", "oracle")


@dataclass
class Measured:
    """Rows so far, the failures among them, and what is to be said under the table."""

    seconds: float
    threads: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[EdgedaError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summaries: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the runs that rows name."""

    def add(self, subject: Subject, facts: Row) -> dict[str, Any]:
        """Measure `subject` at batch 1 and keep it as a row with `facts`."""
        ((profile, error),) = measure(subject, (1,), self.threads, self.seconds)
        row = {**profile.to_dict(), **facts}
        row["note"] = "; ".join(note for note in (profile.note, facts.get("note", "")) if note)
        self.rows.append(row)
        self.errors += [error] if error else []
        return row


def add_run(measured: Measured, run: RunDirectory, name: str, seen: dict[str, dict[str, Any]]) -> None:
    """The networks of a finished run in torch, and its exports. `name` is the run's in a table of several, or empty.

    A network whose weights are those of an earlier run is not measured again: its row, in `seen` by their digest,
    names this run too.
    """
    summary = measured.summaries[str(run.path)] = run.summary()
    for role in NETWORKS:
        words = reference_student(summary) if role == "source_only" else role
        weights = run.weights(role)
        if not weights.is_file() and accuracy(summary, role, "source") is None:
            continue
        if role == "student" and summary.get("method") == "source-only":
            continue  # its student is its source-only student
        digest = f"{role}{sha256(weights)}" if weights.is_file() and name else ""
        if digest in seen:
            seen[digest]["also_of"].append(str(run.path))
            continue
        label = f"{name}: {words}" if name else words
        row = measured.add(weights_subject(label, weights), {**facts(run, summary, role), "role": role})
        if digest:
            seen[digest] = row
    for subject in exported_subjects(run):
        path = run.exports / subject.model
        role = exported_role(subject.model)
        if role == "student" and summary.get("method") == "source-only":
            role = "source_only"
        label = f"{name}: {subject.model}" if name else subject.model
        known = {**facts(run, summary, role), "role": "export", "file": str(path)}
        known |= {f"target_{kind}": None for kind in KINDS}
        known |= {"target_accuracy": exported_accuracy(path, summary), "source_accuracy": None}
        row = measured.add(replace(subject, model=label), known)
        row["precision"] = _precision(path) or row["precision"]


def facts(run: RunDirectory, summary: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Where a network comes from, and its accuracies in percent: `target_accuracy` is the selected epoch's.

    `also_of` is for other runs that have the very same network. A run whose epoch was chosen by target labels has an
    oracle's accuracy and no selected one: the two are never shown as one figure.
    """
    found = {f"target_{kind}": accuracy(summary, role, "target", kind) for kind in KINDS}
    if _by_oracle(summary):
        found["target_selected"] = None
    return {
        "run": str(run.path),
        "also_of": [],
        "method": summary.get("method"),
        "network": role,
        "reference": reference_student(summary),
        **found,
        "target_accuracy": found["target_selected"],
        "source_accuracy": accuracy(summary, role, "source"),
    }


def _by_oracle(summary: Mapping[str, Any]) -> bool:
    return bool((summary.get("selection") or {}).get("rule") == "oracle")


def accuracy(summary: Mapping[str, Any], role: str, domain: str, kind: str = "selected") -> float | None:
    """Percent of a role on `target` (at the `kind` of epoch) or `source`, from a summary.json; None when not there."""
    value: Any = summary.get("accuracy")
    for key in (role, domain):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        value = value.get(kind)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def exported_role(relative: str) -> str:
    """Which network a file under RUN/exports is of, by its name or its folder's: `student` where neither says."""
    parts = Path(relative).parts
    for part in reversed(parts):
        for role in ROLES:
            if part.startswith(role):
                return role
    return "student"


def exported_accuracy(path: Path, summary: Mapping[str, Any]) -> float | None:
    """What the manifest beside an export says of its accuracy, if that was on all target-test images.

    None for an epoch that was chosen by those images' labels.
    """
    if _by_oracle(summary):
        return None
    try:
        measured = manifest_beside(path)["accuracy"]
        everything = measured["images"] == summary["images"]["target_test"]
        return float(measured["exported"]) if everything else None
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def manifest_beside(path: Path) -> dict[str, Any]:
    """The manifest that was written beside an export, or {}.

    Several files of one folder may have one each: `<name>.manifest.json`, or `manifest.json` with this file's digest.
    """
    if path.suffix.lower() == ".engine":  # what lies beside it describes the ONNX file it was built from
        try:
            return read_sidecar(path) or {}
        except InputError:
            return {}
    for place in (path.with_name(f"{path.stem}.manifest.json"), path.with_name("manifest.json")):
        try:
            found = parse_json(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(found, dict):
            continue
        digest = found.get("sha256")
        alone = len([*path.parent.glob("*.onnx"), *path.parent.glob("*.xml")]) == 1
        if alone or place.name != "manifest.json" or digest == sha256(path):
            return found
    return {}


def _precision(path: Path) -> str | None:
    """The precision an export was made in, which may not be the one that its engine computes in."""
    said = manifest_beside(path).get("precision")
    return said if isinstance(said, str) else None


def short_names(runs: Sequence[RunDirectory]) -> Iterator[str]:
    """A name for each run: as many of the last parts of its path as tell all apart."""
    paths = [run.path.resolve().parts for run in runs]
    for take in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(parts[-take:]) for parts in paths]
        if len(set(names)) == len(set(paths)):
            break
    yield from names
