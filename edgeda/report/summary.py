"""Results of adapt, evaluate and export as text, each ending with what to type next."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeda.artifacts import RECIPE, RunDirectory, as_argument
from edgeda.guessing import guessing, like_guessing
from edgeda.report.tables import Column, text_table

log = logging.getLogger(__name__)

ACCURACY_COLUMNS = (
    Column("network", "network"),
    Column("last", "target last", "%", 1),
    Column("selected", "target selected", "%", 1),
    Column("oracle", "target oracle*", "%", 1),
    Column("source", "source", "%", 1),
    Column("gmacs", "GMACs"),
    Column("params_m", "params", "M"),
)
EXPORT_COLUMNS = (
    Column("artifact", "artifact"),
    Column("executed", "runs here in"),
    Column("size_mb", "size", "MB", 1),
    Column("max_abs_error", "largest", "error"),
    Column("mean_abs_error", "mean", "error"),
    Column("agreement", "agreement", "%", 1),
    Column("accuracy", "accuracy", "%", 1),
    Column("drop", "lost", "points", 2),
    Column("kept", "kept", "layers"),
    Column("latency_ms", "latency", "ms"),
    Column("speedup", "x fp32", "ONNX", 2),
)
LONGER = 4
"""Times the epochs, for a student that still guesses."""
NAMES = {"source_only": "student, source-only", "student": "student, adapted", "teacher": "teacher"}


def summary_text(summary: Mapping[str, Any]) -> str:
    """The end of `edgeda adapt`: accuracies, the verdict, the next commands."""
    rows = accuracy_rows(summary)
    rule, epoch = summary["selection"]["rule"], summary["selection"]["epoch"]
    lines = ["", text_table(rows, ACCURACY_COLUMNS, width=100), ""]
    if rows[0]["selected"] is None:
        lines.append("target accuracy is not known: no --target-test was given; the verdict needs no labels")
    else:
        how = (
            "by target-test labels (oracle: not a fair result)"
            if rule == "oracle"
            else f"by {rule}, without target labels"
        )
        lines.append(f"selected: epoch {epoch}, {how};  * oracle: the best epoch by target labels, an upper bound only")
    if summary["accuracy_source_images"] != "held out":
        lines.append("source: accuracy on the images trained on, as none are held out (data.source_holdout)")
    lines += [
        *verdict_lines(summary),
        f"{summary['wall_s']:.0f} s of training, {summary['pairs_per_s']:.1f} pairs/s in {summary['precision']}, "
        f"peak memory {summary['peak_memory_mb'] / 1000:.1f} GB; run saved in {summary['run']}",
        "",
        *_next_commands(summary),
    ]
    return "\n".join(lines)


def _next_commands(summary: Mapping[str, Any]) -> list[str]:
    """What to type after training: for the device that the student goes to, or to train one that guesses longer."""
    run = as_argument(summary["run"])
    if cautioned(summary):
        first = [("next, longer", f"{_again(summary)} --epochs {LONGER * summary['epochs']}")]
    else:
        role = "" if summary["verdict"]["ship"] == "adapted" else " --role source_only"
        first = [
            ("next, for an x86 CPU", f"edgeda export{run} --precision int8 --for x86{role}"),
            ("for an NVIDIA device", f"edgeda export{run} --trt{role}"),
        ]
    commands = [*first, ("side by side", f"edgeda compare{run}")]
    width = max(len(words) for words, _ in commands)
    return [f"{words:>{width}}: {command}" for words, command in commands]


def _again(summary: Mapping[str, Any]) -> str:
    """What trains a run's student longer: its recipe again, or where it was pruned, what is left of it."""
    if summary["method"] != "tcp":
        return f"edgeda adapt --recipe {shlex.quote(str(Path(summary['run']) / RECIPE))}"
    data = [("--from", summary["run"]), ("--target", summary["target"]), ("--target-test", summary["target_test"])]
    return "edgeda adapt " + " ".join(f"{option} {shlex.quote(str(value))}" for option, value in data if value)


def accuracy_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of `ACCURACY_COLUMNS` for each network of a run."""
    rows = []
    for role, name in {**NAMES, "source_only": reference_name(summary)}.items():
        found = (summary.get("accuracy") or {}).get(role) or {}
        if found.get("source") is None:
            continue
        # a pruned student is smaller than its reference, and may be another network
        costs = (summary.get("complexity") or {}).get(role) or (summary.get("complexity") or {}).get("student") or {}
        backbone = summary.get(role) or summary.get("student")
        rows.append(
            {"network": f"{name} ({backbone})", **(found.get("target") or {}), "source": found["source"], **costs}
        )
    return rows


def reference_name(summary: Mapping[str, Any]) -> str:
    """What the student is compared with, as a row is called: the source-only one, or that a run was adapted from."""
    return reference_student(summary) if summary.get("started_from") else NAMES["source_only"]


def reference_student(summary: Mapping[str, Any]) -> str:
    """The same in a sentence, after "the"."""
    earlier = summary.get("started_from")
    return f"student of {earlier} as it was" if earlier else "source-only student"


def reference_word(summary: Mapping[str, Any]) -> str:
    """The same in a word, before "student"."""
    return "earlier" if summary.get("started_from") else "source-only"


def warn_against(run: RunDirectory) -> None:
    """A warning where the verdict is not to ship the run's adapted student, or neither."""
    summary = run.summary()
    caution = cautioned(summary)
    if caution:
        log.warning("the verdict is to ship neither student yet: %s", caution)
    elif (summary.get("verdict") or {}).get("ship") == "source-only":
        command = f"edgeda export{as_argument(run.path)} --role source_only"
        log.warning("the verdict is to ship the %s: %s", reference_student(summary), command)


def verdict_lines(summary: Mapping[str, Any]) -> list[str]:
    """The label-free verdict in a line; one that it is not ready to ship, and one where target labels say otherwise."""
    verdict = summary.get("verdict")
    if not isinstance(verdict, Mapping):
        return []
    choice = f"the {shipped_student(summary)}: {verdict.get('reason')}"
    caution, contradiction = cautioned(summary), contradicted(summary)
    lines = [f"verdict: not ready to ship: {caution}"] if caution else []
    if summary.get("method") != "source-only":
        lines.append(
            f"of the two students, without labels: {choice}" if caution else f"verdict (label-free): ship {choice}"
        )
    return [*lines, *([contradiction] if contradiction else [])]


def shipped_student(summary: Mapping[str, Any]) -> str:
    """The student that the label-free verdict takes, in a sentence after "the"."""
    verdict = summary.get("verdict") or {}
    return "adapted student" if verdict.get("ship") == "adapted" else reference_student(summary)


def cautioned(summary: Mapping[str, Any]) -> str | None:
    """That the student which the verdict takes is close to guessing, by what there is: im, source and target labels."""
    verdict = summary.get("verdict")
    if not isinstance(verdict, Mapping):
        return None
    adapted = verdict.get("ship") == "adapted"
    found = (summary.get("accuracy") or {}).get("student" if adapted else "source_only") or {}
    scores = (verdict.get("evidence") or {}).get("im")
    im = scores.get("adapted" if adapted else "source_only") if isinstance(scores, Mapping) else None
    said = guessing(
        len(summary.get("classes") or ()), im if isinstance(im, (int, float)) and im >= 0 else None,
        {"the source": found.get("source"), "the target": (found.get("target") or {}).get("selected")},
    )  # fmt: skip
    return f"the {shipped_student(summary)} is {said}" if said else None


def contradicted(summary: Mapping[str, Any]) -> str | None:
    """One line when target labels contradict the label-free verdict, None when they agree or there are none.

    They contradict it when the student it would not ship is the better one on target-test, by more than a tenth
    of a point, and does not guess.
    """
    found = summary.get("accuracy") or {}
    student, reference = (((found.get(role) or {}).get("target") or {}).get("selected") for role in (
        "student", "source_only"))  # fmt: skip
    if student is None or reference is None or not isinstance(summary.get("verdict"), Mapping):
        return None
    adapted = summary["verdict"].get("ship") == "adapted"
    better, worse = (reference, student) if adapted else (student, reference)
    if better <= worse + 0.1 or like_guessing(better, len(summary.get("classes") or ())):
        return None
    who = reference_word(summary) if adapted else "adapted"
    return (
        f"the target labels contradict this verdict: by them the {who} student is better, {better:.1f} % against "
        f"{worse:.1f} %"
    )


def evaluation_text(result: Mapping[str, Any]) -> str:
    """Overall accuracy, and a row for each class."""
    rows = [{"class": name, **values} for name, values in result["per_class"].items()]
    columns = (Column("class", "class"), Column("images", "images"), Column("accuracy", "accuracy", "%", 1))
    skipped = f", {len(result['skipped'])} files skipped" if result["skipped"] else ""
    where = f"{result['model']} in {result['engine']}{skipped}"
    head = f"{result['accuracy']:.2f} % of {result['images']} images right ({where})"
    return "\n".join([text_table(rows, columns), "", head])


def export_text(result: Mapping[str, Any]) -> str:
    """What was written, the table of all artifacts beside the fp32 ONNX, and what to type next."""
    lines = []
    for artifact in result["artifacts"]:
        manifest = artifact["manifest"]
        low, high = manifest["batch"]
        batch = "any batch size" if high is None else f"batch {low}" if low == high else f"batch {low} to {high}"
        opset = f", opset {manifest['opset']}" if manifest["opset"] else ""
        lines.append(
            f"wrote {artifact['path']}: {manifest['size_mb']:.1f} MB, {manifest['precision']}{opset}, {batch}, "
            f"{manifest['layout']} to {manifest['output']}"
        )
        quantization = manifest["quantization"] or {}
        if quantization:
            kept = ", ".join(quantization["kept"]) or "none"
            lines.append(
                f"  {quantization['scheme']}, {quantization['calibrator']} on {quantization['images']} "
                f"{quantization['images_from']}; layers in higher precision: {kept}"
            )
        if quantization.get("qat"):
            taught = quantization["qat"]
            passes = "1 epoch" if taught["epochs"] == 1 else f"{taught['epochs']} epochs"
            lines.append(
                f"  taught for {passes} on {taught['images']} images: {quantization['drop']:.2f} "
                f"points lost, without it {taught['drop_without']:.2f}"
            )
    parity = result["manifest"]["parity"]
    errors_of = dict.fromkeys(row["errors_of"] for row in result["table"])
    lines += ["", text_table(result["table"], EXPORT_COLUMNS, width=120), ""]
    lines.append(
        f"judged against torch on {parity['images']} {parity['images_from']}; "
        f"lost: points of {result['table'][0]['measure']}; errors: of {' or '.join(errors_of)}"
    )
    if any(row["clean"] is False for row in result["table"]):
        lines.append("other programs used the CPU meanwhile: latencies are not clean")
    return "\n".join([*lines, "", f"next: edgeda profile {shlex.quote(str(result['path']))}"])
