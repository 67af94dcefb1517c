"""The parts of a report, each a function from what is known to HTML; with nothing known it is empty."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from edgeda.profiling.latency import Latency
from edgeda.profiling.machine import machine_line
from edgeda.report import svg
from edgeda.report.evidence import AFTER, BEFORE, Evidence, confusion, domain_gap, embed, samples
from edgeda.report.page import facts, figure, figures, folded, items, paragraph, section, table
from edgeda.report.summary import ACCURACY_COLUMNS, accuracy_rows, contradicted
from edgeda.report.svg import escape
from edgeda.report.tables import Column, Row, format_value
from edgeda.schedules import beta

Summary = Mapping[str, Any]
History = Sequence[Mapping[str, Any]]

STUDENTS = ("source-only student", "adapted student")
MOST_CLASSES = 40
MOST_LAYERS = 24
THUMBNAIL = 112


def headline(summary: Summary, history: History) -> str:
    """What to do, in one plain sentence."""
    if not summary:
        if not history:
            return "This run has not finished its first epoch."
        last = history[-1]
        return f"This run is not finished: stage {last['stage']}, epoch {last['epoch']} of {last.get('epochs', '?')}."
    verdict = summary.get("verdict") or {}
    if verdict.get("ship") == "adapted":
        return "Ship the adapted student."
    return "Keep the source-only student: adaptation did not help, as far as can be told without labels."


def head_section(name: str, summary: Summary, history: History, found: Evidence) -> str:
    """Title, the verdict in words, whether labels agree, and what is missing from this page."""
    about = ""
    if summary:
        about = (
            f"{summary.get('method')}: {summary.get('source')} to {summary.get('target')}, student "
            f"{summary.get('student')}, teacher {summary.get('teacher') or 'none'}, seed {summary.get('seed')}"
        )
    parts = [paragraph(headline(summary, history)), *(paragraph(line) for line in _evidence(summary))]
    contradiction = contradicted(summary)
    if contradiction:
        parts.append(paragraph(contradiction[0].upper() + contradiction[1:] + ".", "warning"))
    kind = "" if not summary else "bad" if contradiction or (summary.get("verdict") or {}).get("ship") != "adapted" else "good"
    missing = "".join(paragraph(f"Not shown: {line}", "warning") for line in found.missing)
    return (
        f"<header><h1>{escape(name)}</h1>{paragraph(about, 'dim') if about else ''}</header>\n"
        f'<div class="verdict {kind}">{"".join(parts)}</div>{missing}'
    )


def _evidence(summary: Summary) -> list[str]:
    if not summary:
        return []
    lines = []
    student, reference = (_selected(summary, role) for role in ("student", "source_only"))
    if student is not None and reference is not None:
        gap = student - reference
        said = f"{abs(gap):.1f} points {'more' if gap >= 0 else 'fewer'} than" if abs(gap) > 0.05 else "as many as"
        lines.append(
            f"On labelled target images the adapted student is right on {student:.1f} %, {said} the source-only "
            f"student ({reference:.1f} %)."
        )
    else:
        lines.append("There are no target labels, so its accuracy on the target is not known.")
    verdict = summary.get("verdict") or {}
    if verdict.get("reason"):
        lines.append(f"Judged without any target label: {verdict['reason']}.")
    rule = (summary.get("selection") or {}).get("rule")
    if rule == "oracle":
        lines.append("The epoch was chosen by target labels (oracle): its accuracy is an upper bound, not a fair result.")
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
        parts.append(figures(_per_class(summary, found), *(_confused(found, role) for role in found.logits)))
    return section("Accuracy", *parts)


def _per_class(summary: Summary, found: Evidence) -> str:
    test = found.test
    assert test is not None
    assert test.labels is not None
    classes = test.classes or tuple(summary["classes"])
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
    names = [_student(role) for role in found.logits]
    columns = [Column("class", "class"), *(Column(name, name, "%", 1) for name in names)]
    listed = [{"class": name, **dict(zip(names, values, strict=True))} for name, values in rows]
    drawing = svg.bars(
        "Accuracy by class", f"Percent of target-test images of each class, of {' and '.join(names)}", shown, "%", 100.0
    )
    return figure("Right on the target, by class, %", drawing, legend=names, note=note, table=table(listed, columns))


def _student(role: str) -> str:
    return STUDENTS[(BEFORE, AFTER).index(role)]


def _confused(found: Evidence, role: str) -> str:
    test = found.test
    assert test is not None
    assert test.labels is not None
    classes = test.classes or ()
    counts = confusion(found.logits[role], test.labels, len(classes))
    wrong = [
        {"true": classes[row], "predicted": classes[column], "images": counts[row][column]}
        for row in range(len(classes))
        for column in range(len(classes))
        if row != column and counts[row][column]
    ]
    wrong.sort(key=lambda pair: -pair["images"])
    worst = ", ".join(f"{one['true']} for {one['predicted']} ({one['images']})" for one in wrong[:3])
    note = f"Most often mistaken: {worst}." if worst else "No image is mistaken."
    drawing = svg.matrix(f"Confusion of the {_student(role)}", f"A row for each true class. {note}", classes, counts)
    columns = [Column("true", "true class"), Column("predicted", "taken for"), Column("images", "images")]
    return figure(f"Confusion: {_student(role)}", drawing, note=note, table=table(wrong[:200], columns))


def samples_section(summary: Summary, found: Evidence) -> str:
    """Target images with what both students say of them."""
    chosen = samples(found)
    test = found.test
    if not chosen or test is None:
        return ""
    classes = test.classes or tuple(summary.get("classes", ()))
    cards = [_card(found, index, classes) for index in chosen]
    if test.labels is None:
        said = "Images whose predicted class changed come first; their true classes are not known."
    else:
        said = "First those that adaptation put right, then those it spoiled, those still wrong, and those always right."
    return section("Target images", paragraph(said, "dim"), f'<ul class="samples">{"".join(cards)}</ul>')


def _card(found: Evidence, index: int, classes: Sequence[str]) -> str:
    assert found.test is not None
    labels = found.test.labels
    truth = None if labels is None else int(labels[index])
    lines = [] if truth is None else [f"true: {escape(classes[truth])}"]
    for role, words in ((BEFORE, "source-only"), (AFTER, "adapted")):
        guess = int(found.logits[role][index].argmax())
        kind, sign = ("", "") if truth is None else ("right", "✓ ") if guess == truth else ("wrong", "✗ ")
        spoken = "" if truth is None else f' aria-label="{"right" if guess == truth else "wrong"}"'
        lines.append(f'{words}: <span class="{kind}"><span role="img"{spoken}>{sign}</span>{escape(classes[guess])}</span>')
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


def features_section(found: Evidence) -> str:
    """Both domains in the feature space of both students."""
    drawn = []
    for role, (source, target) in found.features.items():
        how, first, second = embed(source, target)
        gap = domain_gap(source, target)
        groups = {"source": [(float(x), float(y)) for x, y in first], "target": [(float(x), float(y)) for x, y in second]}
        note = (
            f"{how} of {len(source)} source and {len(target)} target images. The domains' means are {gap:.2f} of a "
            "domain's spread apart."
        )
        title = f"Features of the {_student(role)}"
        drawn.append(figure(title, svg.scatter(title, note, groups), legend=list(groups), note=note))
    why = "Where adaptation worked, target images lie among the source images of their class instead of apart from them."
    return section("Features of both domains", paragraph(why, "dim") if drawn else "", figures(*drawn))


def training_section(history: History, found: Evidence) -> str:
    """Losses of each stage, the label-free score, accuracies, and the weight of distillation."""
    drawn = [_losses(stage, [one for one in history if one["stage"] == stage])
             for stage in dict.fromkeys(str(record["stage"]) for record in history)]  # fmt: skip
    return section("Training", figures(_over_epochs(history), *drawn, _beta(history, found)))


def _losses(stage: str, epochs: History) -> str:
    terms = list(dict.fromkeys(term for epoch in epochs for term in epoch["losses"]))
    series = {
        term: [(float(one["epoch"]), float(one["losses"][term])) for one in epochs if term in one["losses"]]
        for term in terms[: svg.STYLES]
    }
    if not series:
        return ""
    names = [term.replace("_", " ") for term in series]
    drawing = svg.lines(f"Losses of stage {stage}", f"Mean of each term by epoch: {', '.join(names)}", series, "epoch", "loss")
    columns = [Column("epoch", "epoch"), *(Column(term, term.replace("_", " "), "", 4) for term in terms)]
    listed = [{"epoch": one["epoch"], **one["losses"]} for one in epochs]
    return figure(f"Losses: {stage}", drawing, legend=names, table=table(listed, columns))


def _over_epochs(history: History) -> str:
    known: dict[str, list[tuple[float, float]]] = {}
    scored = [one for one in history if one["networks"]]
    labelled = any(v.get("target_accuracy") is not None for one in scored for v in one["networks"].values())
    for one in scored:
        for role, values in one["networks"].items():
            value = values.get("target_accuracy") if labelled else values["scores"]["im"]
            if value is not None:
                line = known.setdefault(role.replace("_", "-"), [])
                line.append((float(len(line) + 1), float(value)))
    if not known:
        return ""
    what = "right on the target, %" if labelled else "information maximization, nats"
    note = "For reporting only: epochs are not chosen by this." if labelled else "The label-free score of target images."
    drawing = svg.lines("Networks over their epochs", f"{what}, by epoch", known, "scored epoch", what, zero=False)
    columns = [Column("network", "network"), Column("epoch", "scored epoch"), Column("value", what, "", 2)]
    listed = [{"network": role, "epoch": int(x), "value": y} for role, points in known.items() for x, y in points]
    return figure("Networks over their epochs", drawing, legend=list(known), note=note, table=table(listed, columns))


def _beta(history: History, found: Evidence) -> str:
    joint = [one for one in history if one["stage"] == "joint"]
    if not joint or found.recipe is None:
        return ""
    start, end = found.recipe.distill.beta
    epochs = max(int(joint[0].get("epochs") or len(joint)), 1)
    points = [(epochs * step / 40, beta(step / 40, start, end)) for step in range(41)]
    note = f"Of distillation, from {start:g} to {end:g}; adaptation has the rest. {len(joint)} of {epochs} epochs are done."
    drawing = svg.lines("Weight of distillation, beta", note, {"beta": points}, "epoch", "beta")
    listed = [{"epoch": x, "beta": y} for x, y in points[::5]]
    columns = [Column("epoch", "epoch", "", 1), Column("beta", "beta", "", 3)]
    return figure("Beta, the weight of distillation", drawing, note=note, table=table(listed, columns))


def cost_section(found: Evidence, calls: tuple[list[float], Latency] | None) -> str:
    """Where the student's arithmetic is, and how long its calls take."""
    return section("Cost of the student", figures(_layers(found.layers), _latency(calls)))


def _layers(layers: Sequence[Row]) -> str:
    if not layers:
        return ""
    total = sum(row["gmacs"] for row in layers)
    dearest = sorted(layers, key=lambda row: -row["gmacs"])[:MOST_LAYERS]
    shown = [row for row in layers if row in dearest]
    rows = [(str(row["layer"]), [1e3 * row["gmacs"]]) for row in shown]
    note = f"Million multiply-accumulates of one image; {format_value(1e3 * total)} in all {len(layers)} layers."
    if len(shown) < len(layers):
        note += f" The {len(shown)} dearest are drawn, in their order."
    columns = [Column("layer", "layer"), Column("gmacs", "GMACs", "", 5), Column("params_m", "params", "M", 4),
               Column("output", "output")]  # fmt: skip
    drawing = svg.bars("Cost of each layer", note, rows, "MMACs")
    return figure("Cost of each layer", drawing, note=note, table=table(layers, columns))


def _latency(calls: tuple[list[float], Latency] | None) -> str:
    if not calls:
        return ""
    durations, latency = calls
    marks = {"median": latency.median_ms, "p90": latency.p90_ms, "p99": latency.p99_ms}
    beyond = sum(value > 2 * latency.p99_ms for value in durations)
    note = f"{latency.n} single calls of the student in torch, one image each."
    note += f" {beyond} took more than twice the p99 and are not drawn." if beyond else ""
    if latency.clean is False:
        note += f" Not clean: other work waited for a CPU for {latency.pressure:.0%} of the time."
    words = ", ".join(f"{name} {value:.3g} ms" for name, value in marks.items())
    drawing = svg.histogram("Latency of single calls", words, durations, "ms", marks)
    listed = [{"what": name, "ms": value} for name, value in
              {"fastest": min(durations), **marks, "mean": statistics.fmean(durations), "slowest": max(durations)}.items()]  # fmt: skip
    return figure("Latency of single calls", drawing, note=note, table=table(listed, [Column("what", "call"),
                  Column("ms", "time", "ms")]))  # fmt: skip


COMPARED = (
    Column("number", "no."), Column("model", "model"), Column("engine", "engine"), Column("precision", "type"),
    Column("target_selected", "target selected", "%", 1), Column("target_last", "target last", "%", 1),
    Column("target_oracle", "target oracle*", "%", 1), Column("source_accuracy", "source", "%", 1),
    Column("gmacs", "GMACs"), Column("params_m", "params", "M"), Column("size_mb", "size", "MB"),
    Column("median_ms", "median", "ms"), Column("p99_ms", "p99", "ms"), Column("energy_mj", "energy", "mJ"),
    Column("front", "on the front"),
)  # fmt: skip


def comparison_section(compared: Mapping[str, Any] | None) -> str:
    """Every network and export beside the others, and who is not beaten."""
    if not compared:
        return ""
    placed = [row for row in compared["rows"] if row["target_accuracy"] is not None and row["median_ms"] is not None]
    numbers = {id(row): number for number, row in enumerate(placed, 1)}
    rows = [
        {**row, "number": numbers.get(id(row)), "target_selected": row["target_selected"] or row["target_accuracy"]}
        for row in compared["rows"]
    ]
    columns = [column for column in COMPARED if any(row.get(column.key) not in (None, "") for row in rows)]
    engines = list(dict.fromkeys(str(row["engine"]) for row in placed))
    drawn = ""
    if placed:
        points = [
            (f"{row['model']} in {row['engine']}", row["median_ms"], row["target_accuracy"], row["front"],
             engines.index(str(row["engine"]))) for row in placed
        ]  # fmt: skip
        budget = (compared["ship"] or {}).get("budget_ms")
        told = f"{sum(row['front'] for row in placed)} of {len(placed)} are on the front"
        drawing = svg.pareto("Accuracy against latency", told, points, budget)
        note = "Numbers are those of the table; ringed: no other is both as accurate and as fast."
        drawn = figures(figure("Accuracy against latency", drawing, legend=engines, note=note))
    shipped = (compared["ship"] or {}).get("row")
    lines = [compared["conclusion"], *([compared["ship"]["sentence"]] if compared["ship"] else []), *compared["notes"]]
    return section(
        "Side by side on this machine",
        drawn,
        table(rows, columns, [index == shipped for index in range(len(rows))]),
        paragraph("* oracle: best epoch by target labels; an upper bound only.", "note") if "target_oracle" in {
            column.key for column in columns} else "",
        items(lines),
        paragraph(f"Measured at batch 1 on {compared['machine_line']}.", "dim"),
    )  # fmt: skip


def recipe_section(summary: Summary, found: Evidence, here: dict[str, Any]) -> str:
    """What was run, on which images, on which machine."""
    pairs: dict[str, object] = {}
    if summary:
        counts = summary.get("images") or {}
        pairs = {
            "edgeda": summary.get("edgeda"),
            "images": ", ".join(f"{number} {name.replace('_', '-')}" for name, number in counts.items()),
            "selection": f"{summary['selection']['rule']}, epoch {summary['selection']['epoch']}"
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
