"""The parts of a report that are plots of numbers: features, training, cost, the comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgeda.profiling.latency import Latency
from edgeda.report import svg
from edgeda.report.evidence import Evidence, domain_gap, embed
from edgeda.report.page import figure, figures, items, paragraph, section, table
from edgeda.report.sections import network_name, student_name
from edgeda.report.tables import Column, Row, format_value
from edgeda.schedules import beta

History = Sequence[Mapping[str, Any]]

MOST_LAYERS = 24


def features_section(summary: Mapping[str, Any], found: Evidence) -> str:
    """Both domains in the feature space of both students."""
    drawn = []
    for role, (source, target) in found.features.items():
        how, first, second = embed(source, target)
        gap = domain_gap(source, target)
        groups = {
            "source": [(float(x), float(y)) for x, y in first],
            "target": [(float(x), float(y)) for x, y in second],
        }
        note = (
            f"{how} of {len(source)} source and {len(target)} target images. The domains' means are {gap:.2f} of a "
            "domain's spread apart."
        )
        title = f"Features of the {student_name(role, summary)}"
        drawn.append(figure(title, svg.scatter(title, note, groups), legend=list(groups), note=note))
    why = (
        "Where adaptation worked, target images lie among the source images of their class instead of apart from them."
    )
    return section("Features of both domains", paragraph(why, "dim") if drawn else "", figures(*drawn))


def training_section(summary: Mapping[str, Any], history: History, found: Evidence) -> str:
    """Losses of each stage, the label-free score, accuracies, and the weight of distillation."""
    drawn = [_losses(stage, [one for one in history if one["stage"] == stage])
             for stage in dict.fromkeys(str(record["stage"]) for record in history)]  # fmt: skip
    return section("Training", figures(_over_epochs(summary, history), *drawn, _beta(history, found)))


def _losses(stage: str, epochs: History) -> str:
    terms = list(dict.fromkeys(term for epoch in epochs for term in epoch["losses"]))
    series = {
        term: [(float(one["epoch"]), float(one["losses"][term])) for one in epochs if term in one["losses"]]
        for term in terms[: svg.STYLES]
    }
    if not series:
        return ""
    names = [term.replace("_", " ") for term in series]
    drawing = svg.lines(
        f"Losses of stage {stage}", f"Mean of each term by epoch: {', '.join(names)}", series, "epoch", "loss"
    )
    columns = [Column("epoch", "epoch"), *(Column(term, term.replace("_", " "), "", 4) for term in terms)]
    listed = [{"epoch": one["epoch"], **one["losses"]} for one in epochs]
    return figure(f"Losses: {stage}", drawing, legend=names, table=table(listed, columns))


def _over_epochs(summary: Mapping[str, Any], history: History) -> str:
    known: dict[str, list[tuple[float, float]]] = {}
    scored = [one for one in history if one["networks"]]
    labelled = any(v.get("target_accuracy") is not None for one in scored for v in one["networks"].values())
    for one in scored:
        for role, values in one["networks"].items():
            value = values.get("target_accuracy") if labelled else (values.get("scores") or {}).get("im")
            if value is not None:
                line = known.setdefault(network_name(role, summary), [])
                line.append((float(len(line) + 1), float(value)))
    if not known:
        return ""
    what = "right on the target, %" if labelled else "information maximization, nats"
    note = "From target labels, for reporting." if labelled else "The label-free score of target images."
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
    note = f"From {start:g} to {end:g}; adaptation has the rest. {len(joint)} of {epochs} epochs are done."
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
    listed = [
        {"call": name, "ms": value}
        for name, value in {
            "fastest": min(durations), **marks, "mean": statistics.fmean(durations), "slowest": max(durations),
        }.items()
    ]  # fmt: skip
    data = table(listed, [Column("call", "call"), Column("ms", "time", "ms")])
    return figure("Latency of single calls", drawing, note=note, table=data)


COMPARED = (
    Column("model", "model"), Column("number", "no."), Column("engine", "engine"), Column("precision", "type"),
    Column("target_selected", "target selected", "%", 1), Column("target_last", "target last", "%", 1),
    Column("target_oracle", "target oracle*", "%", 1), Column("source_accuracy", "source", "%", 1),
    Column("gmacs", "GMACs"), Column("params_m", "params", "M"), Column("size_mb", "size", "MB"),
    Column("median_ms", "median", "ms"), Column("p99_ms", "p99", "ms"), Column("energy_mj_per_image", "energy", "mJ"),
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
