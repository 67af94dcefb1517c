"""Networks of one or several runs in one table: accuracy, arithmetic, size, speed; who is beaten, what to ship."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeda.artifacts import RunDirectory
from edgeda.errors import InputError
from edgeda.profiling.machine import compute_threads, machine, machine_line
from edgeda.profiling.subjects import TORCH, Subject, file_subject, measure, weights_subject
from edgeda.report.compare_rows import NETWORKS, Measured, accuracy, add_run, facts, short_names
from edgeda.report.pareto import front, ship
from edgeda.report.profiles import caveats
from edgeda.report.summary import verdict_lines
from edgeda.report.tables import Column, Row, format_value, text_table

if TYPE_CHECKING:
    from edgeda.report.pruned import Cut, Pruner
    from edgeda.watching import Watcher

__all__ = ["accuracy", "compare_runs", "compare_text", "conclusion"]

COMPARE_COLUMNS = (
    Column("mark", ""),
    Column("model", "model"),
    Column("engine", "engine"),
    Column("precision", "type"),
    Column("target_accuracy", "target", "%", 1),
    Column("target_last", "last", "%", 1),
    Column("gmacs", "GMACs"),
    Column("params_m", "params", "M"),
    Column("size_mb", "size", "MB"),
    Column("median_ms", "median", "ms"),
    Column("p99_ms", "p99", "ms"),
    Column("energy_mj_per_image", "energy", "mJ"),
)
FRONT, SHIPPED = "*", ">"
_LEVEL = 0.05
_ORT = "onnxruntime"


def compare_runs(
    runs: Sequence[RunDirectory], *, pruned: Sequence[float] = (), train: Watcher | None = None,
    budget_ms: float | None = None, seconds: float = 0.5, threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the networks of finished runs in torch and their exports in their engines, all in one go.

    `pruned` are shares of the first run's teacher's GMACs: each is a row, and so are the cuts at which it has
    the student's GMACs and the student's measured latency. A trained version beside the run is taken; where
    there is none it is trained if `train` is given (who watches), and otherwise measured for its cost alone.
    `budget_ms` is the most that a call may take; `seconds` is measured for each row, on `threads` threads.

    Returns `runs`, `rows` (each a `Profile` at batch 1 with `role`, accuracies in percent, and `front`: whether no
    other row is both as accurate and as fast), `conclusion`, `ship` (None without a budget), `notes`, `machine`.
    Raises InputError for a run that is not finished, and the first failure when nothing could be measured.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    summaries = [run.summary() for run in runs]
    measured = Measured(seconds, threads or compute_threads())
    names = short_names(runs) if len(runs) > 1 else iter([""])
    seen: dict[str, dict[str, Any]] = {}
    for run, name in zip(runs, names, strict=True):
        add_run(measured, run, name, seen)
    if not measured.rows:
        raise InputError(f"the run {runs[0].path} holds neither networks nor exports; there is nothing to compare")
    if pruned:
        _add_pruned(measured, runs[0], pruned, train)
    rows = measured.rows
    if len(measured.errors) == len(rows):
        raise measured.errors[0]
    for row, best in zip(rows, front(rows), strict=True):
        row["front"] = best
    described = machine()
    return {
        "runs": [{"run": str(run.path), "method": summary.get("method"), "verdict": summary.get("verdict"),
                  "says": verdict_lines(summary)}
                 for run, summary in zip(runs, summaries, strict=True)],
        "rows": rows,
        "conclusion": conclusion(rows),
        "ship": ship(rows, budget_ms, measured.summaries) if budget_ms is not None else None,
        "notes": [*measured.notes, *_unmixed(summaries), *caveats(rows)],
        "machine": described,
        "machine_line": machine_line(described),
    }  # fmt: skip


def _unmixed(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    if not any((summary.get("selection") or {}).get("rule") == "oracle" for summary in summaries):
        return []
    return ["a run chose its epoch by target labels (oracle): its target column stays empty, as that is no fair figure"]


def _add_pruned(measured: Measured, run: RunDirectory, shares: Sequence[float], train: Watcher | None) -> None:
    """Rows of the teacher pruned, in the engine that the student is measured in: ONNX Runtime if exported, or torch."""
    from edgeda.report.pruned import COST_ONLY, Cut, Pruner, unique

    pruner = Pruner(run)
    own = [row for row in measured.rows if row["run"] == str(run.path) and row["network"] == "student"]
    exported = [row for row in own if (row["engine"], row["precision"]) == (_ORT, "fp32") and row["median_ms"]]
    student = next(iter(exported or [row for row in own if row["engine"] == TORCH and row["median_ms"]]), None)
    cuts = [*(Cut(share, "") for share in shares), *filter(None, [pruner.equal_gmacs()])]
    with tempfile.TemporaryDirectory() as folder:
        if student is None:
            measured.notes.append("the student could not be measured, so no cut was searched for its latency")
        else:
            cut, said = _search(measured, pruner, student, Path(folder))
            cuts += [cut] if cut else []
            measured.notes.append(f"equal latency in {student['engine']}: {said}")
        for cut in unique(cuts):
            _add_cut(measured, pruner, cut, student["engine"] if student else TORCH, train, Path(folder))
    if not all(row["trained"] for row in measured.rows if row["role"] == "pruned"):
        measured.notes.append(COST_ONLY)


def _search(measured: Measured, pruner: Pruner, student: Row, folder: Path) -> tuple[Cut | None, str]:
    def latency(share: float) -> float:
        pruner.save(share, folder / "searched.safetensors")
        subject = _subject("searched", folder / "searched.safetensors", student["engine"], folder)
        ((profile, error),) = measure(subject, (1,), measured.threads, measured.seconds)
        if error or profile.median_ms is None:
            raise error or InputError("a pruned teacher could not be measured")
        return profile.median_ms

    return pruner.equal_latency(float(student["median_ms"]), latency)


def _add_cut(
    measured: Measured, pruner: Pruner, cut: Cut, engine: str, train: Watcher | None, folder: Path
) -> None:  # fmt: skip
    from edgeda.report.pruned import UNTRAINED, train_pruned

    trained = train_pruned(pruner, cut, train) if train else pruner.trained(cut.share)
    weights = trained.weights() if trained else folder / "cut.safetensors"
    if trained:
        summary = measured.summaries[str(trained.path)] = trained.summary()
        known = {**facts(trained, summary, "student"), "note": f"trained: {trained.path}"}
    else:
        pruner.save(cut.share, weights)
        known = {**facts(pruner.run, {}, "teacher"), "method": None}
    label = cut.label if trained else f"{cut.label}, {UNTRAINED}"
    row = measured.add(_subject(label, weights, engine, folder), {**known, "network": "pruned", "role": "pruned"})
    row["cut"], row["trained"] = cut.share, trained is not None


def _subject(label: str, weights: Path, engine: str, folder: Path) -> Subject:
    """Weights as `engine` runs them: a network in torch, or an ONNX file made for the purpose in `folder`."""
    if engine == TORCH:
        return weights_subject(label, weights)
    from edgeda.export.onnx import export_onnx
    from edgeda.models import load_network
    from edgeda.runtime.manifest import Manifest

    network, card = load_network(weights)
    path = folder / "measured.onnx"
    export_onnx(
        network, Manifest(card.classes, card.preprocessing, card.architecture.backbone, "fp32", (1, None)), path
    )
    return file_subject(label, path, engine)


def conclusion(rows: Sequence[Row]) -> str:
    """What the rows of `compare_runs` say, in one sentence; what was not measured is not claimed."""
    by_role = {role: next((row for row in rows if row["role"] == role), {}) for role in NETWORKS}
    parts = [_on_target(by_role), _arithmetic(by_role), _fastest(rows, by_role["teacher"])]
    return "; ".join(part for part in parts if part) + "."


def compare_text(compared: Mapping[str, Any], width: int = 80) -> str:
    """The result of `compare_runs` as text: table, conclusion, what to ship, notes, machine."""
    shipped = (compared["ship"] or {}).get("row")
    marked = [
        {**row, "mark": (FRONT if row["front"] else " ") + (SHIPPED if at == shipped else " ")}
        for at, row in enumerate(compared["rows"])
    ]
    empty = {column.key for column in COMPARE_COLUMNS if all(row.get(column.key) in (None, "  ") for row in marked)}
    optional = {"mark", "energy_mj_per_image", "target_last"}
    columns = [column for column in COMPARE_COLUMNS if column.key not in empty & optional]
    lines = [f"run {run['run']} ({run['method'] or 'method not known'})" for run in compared["runs"]]
    lines += [text_table(marked, columns, width), ""]
    if any(row["front"] for row in compared["rows"]):
        lines.append(f"{FRONT} no other row is both as accurate on the target and as fast (Pareto front)")
    lines.append(compared["conclusion"])
    if compared["ship"]:
        lines.append(compared["ship"]["sentence"] + (f" ({SHIPPED})" if shipped is not None else ""))
    for run in compared["runs"]:
        prefix = f"{run['run']}: " if len(compared["runs"]) > 1 else ""
        lines += [prefix + line for line in run["says"]]
    lines += compared["notes"]
    return "\n".join([*lines, f"machine: {compared['machine_line']}"])


def _on_target(by_role: Mapping[str, Row]) -> str:
    student, teacher, source_only = (
        by_role[role].get("target_accuracy") for role in ("student", "teacher", "source_only")
    )
    if student is None:
        if any(row.get("target_accuracy") is not None for row in by_role.values()):
            return "no adapted student with a known accuracy on the target is among them"
        return "accuracy on the target is not known, as the run had no target labels"
    said = f"the adapted student reaches {student:.1f} % on the target"
    if source_only is not None:
        reference = by_role["source_only"].get("reference", "source-only student")
        said = f"the adapted student is {_points(student, source_only)} the {reference} on the target"
        if student < source_only - _LEVEL:
            said += f" (keep the {reference})"
    if teacher is not None:
        said += f" and {_points(student, teacher)} the teacher"
    return said


def _points(value: float, other: float) -> str:
    gap = value - other
    if abs(gap) <= _LEVEL:
        return "level with"
    return f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}"


def _arithmetic(by_role: Mapping[str, Row]) -> str:
    student, teacher = by_role["student"].get("gmacs"), by_role["teacher"].get("gmacs")
    if not student or not teacher:
        return ""
    if abs(teacher / student - 1) < 0.01:
        return "the student takes as many GMACs as the teacher"
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
