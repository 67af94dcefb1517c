"""A benchmark's numbers as Markdown, as CSV, and as a short text for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from edgeda.report.benchmark import KINDS, Record
from edgeda.report.tables import Column, markdown_table, text_table

LEVEL = 0.05
"""Points below which two methods are called level."""


def markdown(result: Record) -> str:
    """benchmark.md: a table and a comparison for each of selected, last and oracle; costs; what is missing."""
    lines = [f"# Benchmark {result['benchmark']}", "", *(f"- {line}" for line in _header(result)), ""]
    for kind in KINDS:
        lines += [f"## {_title(result, kind)}", "", _markdown_table(result, kind), ""]
        if any(row["n"] for row in result["paired"][kind]):
            lines += [*(f"- {sentence}" for sentence in sentences(result, kind)), ""]
    lines += ["## Seconds of a cell", "", _cost_table(result), ""]
    lines += ["Training and evaluation, without stages taken over from another cell; mean over seeds.", ""]
    if result["missing"]:
        lines += [f"## Missing: {len(result['missing'])} of {len(result['cells'])} cells", ""]
        lines += [f"- {_place(cell)}: {cell['reason']}" for cell in result["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(result: Record) -> str:
    """benchmark.csv: a line for each cell, with every number; empty where there is none."""
    written = io.StringIO()
    writer = csv.DictWriter(written, list(result["cells"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["cells"])
    return written.getvalue()


def benchmark_text(result: Record, width: int = 100) -> str:
    """The end of `edgeda benchmark`: the selected table, the other averages, the comparison, what is missing."""
    rows = [row for row in result["tables"]["selected"] if row["network"] == "student"]
    scenarios = list(result["scenarios"])
    sources = list(dict.fromkeys(row["from"] for row in result["tables"]["selected"] if "from" in row))
    shown = [_short_row(result, row, sources) for row in rows]
    average = "average" if len(scenarios) > 1 else "accuracy"
    columns = [Column("method", "method"), Column("average", average, "%"), Column("seeds", "seeds")]
    papers = [Column(source, f"[{number}]", "%", 1) for number, source in enumerate(sources, 1)]
    detailed = [*columns[:1], *(Column(f"scenario {name}", name, "%") for name in scenarios), *columns[1:], *papers]
    fits = sum(max(len(column.title), *(len(str(row.get(column.key, ""))) for row in shown)) + 2 for column in detailed)
    chosen = detailed if len(scenarios) > 1 and fits <= width else [*columns, *papers]
    only = [f"scenario: {scenarios[0]}"] if len(scenarios) == 1 else []
    lines = ["", *only, _title(result, "selected"), "", text_table(shown, chosen, width)]
    lines += [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    lines += [
        "",
        f"{average.capitalize()} at the last epoch; at the best epoch by target labels (oracle*, an upper bound only)",
        "",
    ]
    others = [_other_row(result, row["method"]) for row in rows]
    lines.append(
        text_table(
            others,
            [
                Column("method", "method"), Column("last", "last", "%"), Column("oracle", "oracle*", "%"),
                Column("teacher", "teacher selected", "%"), Column("wall_s", "a cell", "s"),
            ],
            width,
        )
    )  # fmt: skip
    compared = sentences(result, "selected")
    lines += ["", *compared] if compared else []
    lines += ["", *_header(result)[1:], f"written to {result['out']}: benchmark.md, .csv and .json"]
    return "\n".join(lines)


def sentences(result: Record, kind: str) -> list[str]:
    """How the reference method compares with each other one, a sentence each."""
    said = []
    for row in result["paired"][kind]:
        if not row["n"]:
            continue
        ties = f", {row['ties']} tied" if row["ties"] else ""
        counted = "1 pair" if row["n"] == 1 else f"{row['n']} pairs"
        deviation = "" if row["std"] is None else f" ± {row['std']:.1f}"
        by = f"{abs(row['mean']):.1f}{deviation} points"
        how = f"{by} {'better' if row['mean'] > 0 else 'worse'} than"
        if abs(row["mean"]) <= LEVEL:
            how = f"level ({row['mean']:+.1f}{deviation} points) with"
        said.append(
            f"{result['reference']} is {how} {row['method']}: better in {row['wins']} of {counted} of scenario and seed"
            f"{ties}"
        )
    return said


def missing_line(result: Record, most: int = 3) -> str:
    """The one line that a benchmark with gaps ends in: each reason once, with the first cell it holds for."""
    gaps = result["missing"]
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for cell in gaps:
        by_reason.setdefault(cell["reason"], []).append(cell)
    said = [
        f"{reason} ({_place(cells[0])}{f' and {len(cells) - 1} more' if len(cells) > 1 else ''})"
        for reason, cells in list(by_reason.items())[:most]
    ]
    more = "; and other reasons, see benchmark.md" if len(by_reason) > most else ""
    return f"{len(gaps)} of {len(result['cells'])} cells are missing: {'; '.join(said)}{more}"


def figure(found: Mapping[str, Any], most: int | None = None) -> str | None:
    """`81.2 ± 0.4`, with `(n=2)` where it rests on fewer seeds than `most`."""
    if found["mean"] is None:
        return None
    deviation = "" if found["std"] is None else f" ± {found['std']:.1f}"
    counted = f" (n={found['n']})" if most is not None and found["n"] < most else ""
    return f"{found['mean']:.1f}{deviation}{counted}"


def _title(result: Record, kind: str) -> str:
    if kind == "last":
        return "Target accuracy at the last epoch (%)"
    if kind == "oracle":
        return "Target accuracy at the best epoch by target-test labels (%): oracle, an upper bound only"
    rules = result["rules"]
    described = [
        f"{rule}, {'with target-test labels: not a fair result' if rule == 'oracle' else 'without target labels'}"
        + (f" ({', '.join(methods)})" if len(rules) > 1 else "")
        for rule, methods in rules.items()
    ]
    return f"Target accuracy at the epoch selected by {'; '.join(described) or 'the rule of the recipe'} (%)"


def _header(result: Record) -> list[str]:
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    students = [
        f"student{'' if len(result['student']) == 1 else ' of ' + ', '.join(student['methods'])}: "
        f"{student['backbone']}, {student['gmacs']:.3g} GMACs, {student['params_m']:.3g} M parameters"
        for student in result["student"]
        if student["gmacs"] is not None and student["params_m"] is not None
    ]
    finished = len(result["cells"]) - len(result["missing"])
    return [
        f"Student on target-test, percent: mean ± sample standard deviation over seeds {_seeds(result['seeds'])}. "
        "The average is over scenarios for each seed, then over seeds. (n=...) marks fewer seeds than the row has.",
        f"recipe {result['benchmark']}, {finished} of {len(result['cells'])} cells, {result['date']}, "
        f"edgeda {', '.join(result['edgeda'])}, {versions}",
        *students,
        *(f"machine: {line}" for line in result["machines"]),
    ]


def _seeds(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _markdown_table(result: Record, kind: str) -> str:
    scenarios = list(result["scenarios"])
    rows = []
    for row in result["tables"][kind]:
        if row["network"] == "published":
            shown = {name: _one_decimal(value) for name, value in row["scenarios"].items()}
            rows.append({"method": row["method"], "network": f"published: {row['from']}",
                         **{f"scenario {name}": value for name, value in shown.items()},
                         "average": _one_decimal(row["average"])})  # fmt: skip
        else:
            rows.append({"method": row["method"], "network": row["network"], **_figures(row)})
    columns = [
        Column("method", "method"),
        Column("network", "network"),
        *(Column(f"scenario {name}", name) for name in scenarios),
        Column("average", "average"),
        Column("seeds", "seeds"),
    ]
    return markdown_table(rows, columns)


def _figures(row: Record) -> Record:
    """Cells of a row of ours, each marked where it rests on fewer seeds than the best one."""
    most = max(found["n"] for found in row["scenarios"].values())
    cells = {f"scenario {name}": figure(found, most) for name, found in row["scenarios"].items()}
    return {**cells, "average": figure(row["average"], most), "seeds": most or None}


def _short_row(result: Record, row: Record, sources: Sequence[str]) -> Record:
    printed = {
        each["from"]: each["average"]
        for each in result["tables"]["selected"]
        if each["network"] == "published" and each["method"] == row["method"]
    }
    return {"method": row["method"], **_figures(row), **{source: printed.get(source) for source in sources}}


def _other_row(result: Record, method: str) -> Record:
    def average(kind: str, network: str) -> str | None:
        for row in result["tables"][kind]:
            if (row["method"], row["network"]) == (method, network):
                return figure(row["average"])
        return None

    cost = next(row for row in result["cost"] if row["method"] == method)
    known = [found for found in cost["wall_s"].values() if found["mean"] is not None]
    cells = sum(found["n"] for found in known)
    seconds = sum(found["mean"] * found["n"] for found in known) / cells if cells else None
    return {
        "method": method, "last": average("last", "student"), "oracle": average("oracle", "student"),
        "teacher": average("selected", "teacher"), "wall_s": None if seconds is None else round(seconds),
    }  # fmt: skip


def _cost_table(result: Record) -> str:
    rows = [
        {
            "method": row["method"],
            **{f"scenario {name}": _one_decimal(found["mean"]) for name, found in row["wall_s"].items()},
            "pairs_per_s": _one_decimal(row["pairs_per_s"]["mean"]),
        }
        for row in result["cost"]
    ]
    scenarios = [Column(f"scenario {name}", name) for name in result["scenarios"]]
    return markdown_table(rows, [Column("method", "method"), *scenarios, Column("pairs_per_s", "pairs/s")])


def _place(cell: Mapping[str, Any]) -> str:
    return f"{cell['scenario']}, {cell['method']}, seed {cell['seed']}"


def _one_decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
