"""The parts of a report, each a function from what is known to HTML; with nothing known it is empty."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from edgeda.profiling.machine import machine_line
from edgeda.report import svg
from edgeda.report.evidence import AFTER, BEFORE, Evidence, confusion, samples
from edgeda.report.page import facts, figure, figures, folded, paragraph, section, table
from edgeda.report.summary import (
    ACCURACY_COLUMNS,
    accuracy_rows,
    cautioned,
    contradicted,
    reference_student,
    reference_word,
    shipped_student,
)
from edgeda.report.svg import escape
from edgeda.report.tables import Column

Summary = Mapping[str, Any]
History = Sequence[Mapping[str, Any]]

MOST_CLASSES = 40
THUMBNAIL = 112


def headline(summary: Summary, history: History) -> str:
    """What to do, in one plain sentence."""
    if not summary:
        if not history:
            return "This run has not finished its first epoch."
        last = history[-1]
        return f"This run is not finished: stage {last['stage']}, epoch {last['epoch']} of {last.get('epochs', '?')}."
    verdict = summary.get("verdict") or {}
    if summary.get("method") == "source-only" and not cautioned(summary):
        return "This run adapts nothing: its source-only student is what others are compared with."
    if cautioned(summary):
        return f"Do not ship this yet: the {shipped_student(summary)} is close to guessing."
    if verdict.get("ship") == "adapted":
        return "Ship the adapted student."
    kept = reference_student(summary)
    return f"Keep the {kept}: adaptation did not help, as far as can be told without labels."


def head_section(name: str, summary: Summary, history: History, found: Evidence) -> str:
    """Title, the verdict in words, whether labels agree, and what is missing from this page."""
    about = ""
    if summary:
        about = (
            f"{summary.get('method')}: {summary.get('source')} to {summary.get('target')}, student "
            f"{summary.get('student')}, teacher {summary.get('teacher') or 'none'}, seed {summary.get('seed')}"
        )
    parts = [paragraph(headline(summary, history)), *(paragraph(line) for line in _evidence(summary))]
    caution, contradiction = cautioned(summary), contradicted(summary)
    parts += [paragraph(said[0].upper() + said[1:] + ".", "warning") for said in (caution, contradiction) if said]
    kind = (
        ""
        if not summary
        else "bad"
        if caution or contradiction or (summary.get("verdict") or {}).get("ship") != "adapted"
        else "good"
    )
    missing = "".join(paragraph(f"Not shown: {line}", "warning") for line in found.missing)
    return (
        f"<header><h1>{escape(name)}</h1>{paragraph(about, 'dim') if about else ''}</header>\n"
        f'<div class="verdict {kind}">{"".join(parts)}</div>{missing}'
    )


def _evidence(summary: Summary) -> list[str]:
    if not summary or summary.get("method") == "source-only":
        return []
    lines = []
    student, reference = (_selected(summary, role) for role in ("student", "source_only"))
    if student is not None and reference is not None:
        gap = student - reference
        said = f"{abs(gap):.1f} points {'more' if gap >= 0 else 'fewer'} than" if abs(gap) > 0.05 else "as many as"
        lines.append(
            f"On labelled target images the adapted student is right on {student:.1f} %, {said} the "
            f"{reference_student(summary)} ({reference:.1f} %)."
        )
    else:
        lines.append("There are no target labels, so its accuracy on the target is not known.")
    verdict = summary.get("verdict") or {}
    if verdict.get("reason"):
        lines.append(f"Judged without any target label: {verdict['reason']}.")
    rule = (summary.get("selection") or {}).get("rule")
    if rule == "oracle":
        lines.append(
            "The epoch was chosen by target labels (oracle): its accuracy is an upper bound, not a fair result."
        )
    return lines


def _selected(summary: Summary, role: str) -> float | None:
    value = (((summary.get("accuracy") or {}).get(role) or {}).get("target") or {}).get("selected")
    return float(value) if isinstance(value, (int, float)) else None


def accuracy_section(summary: Summary, found: Evidence) -> str:
    """The networks' accuracies, each class before and after, and which classes are taken for which."""
    if not summary:
        return ""
    rows = accuracy_rows(summary)
    overall = table(rows, ACCURACY_COLUMNS)
    starred = "* oracle: the best epoch by target labels, an upper bound that nobody has in the field."
    known = any(row.get("selected") is not None for row in rows)
    parts = [overall, paragraph(starred, "note") if known else ""]
    test = found.test
    if test is not None and test.labels is not None and found.logits:
        parts.append(figures(_per_class(summary, found), *(_confused(summary, found, role) for role in found.logits)))
    return section("Accuracy", *parts)


def _per_class(summary: Summary, found: Evidence) -> str:
    test = found.test
    assert test is not None
    assert test.labels is not None
    classes = test.classes or tuple(summary.get("classes") or ())
    rows: list[tuple[str, list[float | None]]] = []
    for index, name in enumerate(classes):
        members = test.labels == index
        if members.any():
            right = [100 * float((logits[members].argmax(axis=1) == index).mean()) for logits in found.logits.values()]
            rows.append((name, [*right]))
    shown, note = rows, ""
    if len(rows) > MOST_CLASSES:
        change = [abs((values[-1] or 0) - (values[0] or 0)) for _, values in rows]
        kept = sorted(np.argsort(change)[::-1][:MOST_CLASSES].tolist())
        shown, note = [rows[at] for at in kept], f"The {MOST_CLASSES} classes that changed most, of {len(rows)}."
    names = [student_name(role, summary) for role in found.logits]
    columns = [Column("class", "class"), *(Column(name, name, "%", 1) for name in names)]
    listed = [{"class": name, **dict(zip(names, values, strict=True))} for name, values in rows]
    drawing = svg.bars(
        "Accuracy by class", f"Percent of target-test images of each class, of {' and '.join(names)}", shown, "%", 100.0
    )
    return figure("Right on the target, by class, %", drawing, legend=names, note=note, table=table(listed, columns))


def student_name(role: str, summary: Summary) -> str:
    """What a reader calls the student of a role."""
    return reference_student(summary) if role == BEFORE else "adapted student"


def network_name(role: str, summary: Summary) -> str:
    """What a reader calls the network of a role, in a legend."""
    return reference_student(summary) if role == BEFORE else role


def _confused(summary: Summary, found: Evidence, role: str) -> str:
    test = found.test
    assert test is not None
    assert test.labels is not None
    classes = test.classes or ()
    counts = confusion(found.logits[role], test.labels, len(classes))
    wrong: list[dict[str, Any]] = [
        {"true": classes[row], "predicted": classes[column], "images": counts[row][column]}
        for row in range(len(classes))
        for column in range(len(classes))
        if row != column and counts[row][column]
    ]
    wrong.sort(key=lambda pair: -pair["images"])
    worst = ", ".join(f"{one['true']} for {one['predicted']} ({one['images']})" for one in wrong[:3])
    note = f"Most often mistaken: {worst}." if worst else "No image is mistaken."
    drawing = svg.matrix(
        f"Confusion of the {student_name(role, summary)}", f"A row for each true class. {note}", classes, counts
    )
    columns = [Column("true", "true class"), Column("predicted", "taken for"), Column("images", "images")]
    return figure(f"Confusion: {student_name(role, summary)}", drawing, note=note, table=table(wrong[:200], columns))


def samples_section(summary: Summary, found: Evidence) -> str:
    """Target images with what both students say of them."""
    chosen = samples(found)
    test = found.test
    if not chosen or test is None:
        return ""
    classes = test.classes or tuple(summary.get("classes") or ())
    cards = [_card(summary, found, index, classes) for index in chosen]
    if test.labels is None:
        said = "Images whose predicted class changed come first; their true classes are not known."
    else:
        said = (
            "First those that adaptation put right, then those it spoiled, those still wrong, and those always right."
        )
    return section("Target images", paragraph(said, "dim"), f'<ul class="samples">{"".join(cards)}</ul>')


def _card(summary: Summary, found: Evidence, index: int, classes: Sequence[str]) -> str:
    assert found.test is not None
    labels = found.test.labels
    truth = None if labels is None else int(labels[index])
    lines = [] if truth is None else [f"true: {escape(classes[truth])}"]
    for role, words in ((BEFORE, reference_word(summary)), (AFTER, "adapted")):
        guess = int(found.logits[role][index].argmax())
        kind, sign = ("", "") if truth is None else ("right", "✓ ") if guess == truth else ("wrong", "✗ ")
        spoken = "" if truth is None else f' aria-label="{"right" if guess == truth else "wrong"}"'
        lines.append(
            f'{words}: <span class="{kind}"><span role="img"{spoken}>{sign}</span>{escape(classes[guess])}</span>'
        )
    alt = "target image" if truth is None else f"target image of class {classes[truth]}"
    return f'<li><img alt="{escape(alt)}" src="{_thumbnail(found.test.squares[index])}">{"<br>".join(lines)}</li>'


def _thumbnail(pixels: np.ndarray[Any, Any]) -> str:
    picture = Image.fromarray(np.asarray(pixels))
    if picture.width > THUMBNAIL:
        picture = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    written = io.BytesIO()
    if picture.width < 64:
        picture.save(written, "PNG")
        kind = "png"
    else:
        picture.save(written, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def recipe_section(summary: Summary, found: Evidence, here: dict[str, Any]) -> str:
    """What was run, on which images, on which machine."""
    pairs: dict[str, object] = {}
    if summary:
        counts = summary.get("images") or {}
        pairs = {
            "edgeda": summary.get("edgeda"),
            "images": ", ".join(f"{number} {name.replace('_', '-')}" for name, number in counts.items()),
            "selection": f"{summary['selection'].get('rule')}, epoch {summary['selection'].get('epoch')}"
            if summary.get("selection") else "not known",
            "training": f"{summary.get('wall_s')} s, {summary.get('pairs_per_s')} pairs/s, {summary.get('precision')}",
            "trained on": machine_line(summary["machine"]) if summary.get("machine") else "not known",
        }  # fmt: skip
        skipped = {name: len(files) for name, files in (summary.get("skipped") or {}).items()}
        if skipped:
            pairs["files skipped"] = ", ".join(f"{count} {name}" for name, count in skipped.items())
    pairs["this page made on"] = machine_line(here)
    text = found.recipe.to_yaml() if found.recipe else ""
    return section("Recipe and machine", facts(pairs), folded("recipe.yaml, every key", text) if text else "")
