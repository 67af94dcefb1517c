"""The numbers of a benchmark: mean and deviation over seeds, a paper's figures beside them, paired differences."""

from __future__ import annotations

import datetime
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeda import __version__
from edgeda.benchmark_recipe import AVERAGE, BenchmarkRecipe
from edgeda.profiling.machine import machine, machine_line

Record = dict[str, Any]

KINDS = ("selected", "last", "oracle")
"""How the epoch was chosen that an accuracy belongs to: three tables, never one."""
NETWORKS = ("student", "teacher")


@dataclass(frozen=True)
class Cell:
    """One run of the grid, finished or not."""

    scenario: str
    method: str
    seed: int
    folder: Path
    summary: Mapping[str, Any] | None = None
    """The finished run's summary.json."""
    reason: str | None = None
    """Why there is none."""

    def number(self, *keys: str) -> float | None:
        """A finite number in the summary, None where there is none."""
        value: Any = self.summary
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        return float(value)

    def target(self, network: str, kind: str) -> float | None:
        """Percent of target-test images that a network classified rightly."""
        return self.number("accuracy", network, "target", kind)

    def to_row(self) -> Record:
        """Every number of the run in one flat record: a line of the CSV file."""
        summary = self.summary or {}
        row: Record = {
            "scenario": self.scenario, "method": self.method, "seed": self.seed,
            "finished": self.summary is not None, "rule": (summary.get("selection") or {}).get("rule"),
            "epoch": (summary.get("selection") or {}).get("epoch"),
        }  # fmt: skip
        for network in (*NETWORKS, "source_only"):
            row |= {f"{network}_{kind}": self.target(network, kind) for kind in KINDS}
            row[f"{network}_source"] = self.number("accuracy", network, "source")
        for network in NETWORKS:
            row[network] = summary.get(network)
            row[f"{network}_gmacs"] = self.number("complexity", network, "gmacs")
            row[f"{network}_params_m"] = self.number("complexity", network, "params_m")
        evidence = (summary.get("verdict") or {}).get("evidence") or {}
        for score in ("im", "snd"):
            row[f"student_{score}"] = (evidence.get(score) or {}).get("adapted")
        return row | {
            "ship": (summary.get("verdict") or {}).get("ship"), "wall_s": self.number("wall_s"),
            "pairs_per_s": self.number("pairs_per_s"), "precision": summary.get("precision"),
            "machine": machine_line(summary["machine"]) if summary.get("machine") else None,
            "edgeda": summary.get("edgeda"), "run": str(self.folder), "reason": self.reason,
        }  # fmt: skip


def tabulate(name: str, section: BenchmarkRecipe, cells: Sequence[Cell], reference: str | None) -> Record:
    """Everything that benchmark.json holds; the other formats are made of it.

    `cells` are the asked-for grid, in any order; scenarios and methods are shown in the order of the
    recipe. `reference` is the method that the others are compared with, None for no comparison.
    """
    scenarios = [scenario for scenario in section.scenarios if any(cell.scenario == scenario for cell in cells)]
    methods = [method for method in section.methods if any(cell.method == method for cell in cells)]
    rows = [cell.to_row() for cell in cells]
    return {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "edgeda": sorted({row["edgeda"] for row in rows if row["edgeda"]}) or [__version__],
        "versions": _versions(),
        "machines": sorted({row["machine"] for row in rows if row["machine"]}) or [machine_line(machine())],
        "seeds": sorted({cell.seed for cell in cells}),
        "scenarios": {scenario: section.scenarios[scenario].model_dump() for scenario in scenarios},
        "methods": {method: section.methods[method] for method in methods},
        "rules": _rules(rows),
        "student": _student(rows),
        "tables": {kind: _table(section, cells, scenarios, methods, kind) for kind in KINDS},
        "reference": reference,
        "paired": {kind: _paired(cells, methods, reference, kind) if reference else [] for kind in KINDS},
        "cost": [_cost(cells, scenarios, method) for method in methods],
        "cells": rows,
        "missing": [
            {"scenario": cell.scenario, "method": cell.method, "seed": cell.seed, "reason": cell.reason}
            for cell in cells
            if cell.summary is None
        ],
    }


def spread(values: Sequence[float]) -> Record:
    """`mean`, sample standard deviation `std` (None below two values) and count `n`."""
    mean = round(statistics.fmean(values), 4) if values else None
    return {"mean": mean, "std": round(statistics.stdev(values), 4) if len(values) > 1 else None, "n": len(values)}


def _table(
    section: BenchmarkRecipe, cells: Sequence[Cell], scenarios: Sequence[str], methods: Sequence[str], kind: str
) -> list[Record]:
    """A row for each method's student, its teacher where there is one, and each published row of it."""
    rows: list[Record] = []
    for method in methods:
        for network in NETWORKS:
            found = _values(cells, method, "accuracy", network, "target", kind)
            if found or network == "student":
                rows.append({
                    "method": method, "network": network, "scenarios": _spreads(found, scenarios),
                    AVERAGE: spread(_averages(found, scenarios)),
                })  # fmt: skip
        rows += _published(section, scenarios, method)
    return rows


def _values(cells: Sequence[Cell], method: str, *keys: str) -> dict[str, dict[int, float]]:
    """A number of a method's summaries by scenario and seed, where it is known."""
    found: dict[str, dict[int, float]] = {}
    for cell in cells:
        known = cell.number(*keys) if cell.method == method else None
        if known is not None:
            found.setdefault(cell.scenario, {})[cell.seed] = known
    return found


def _spreads(found: Mapping[str, Mapping[int, float]], scenarios: Sequence[str]) -> dict[str, Record]:
    """Mean and deviation over seeds for each scenario, empty ones where nothing is known."""
    return {scenario: spread([*found[scenario].values()] if scenario in found else []) for scenario in scenarios}


def _averages(found: Mapping[str, Mapping[int, float]], scenarios: Sequence[str]) -> list[float]:
    """The mean over scenarios, for each seed that has a value in all of them."""
    complete = set.intersection(*(set(found.get(scenario, {})) for scenario in scenarios))
    return [statistics.fmean(found[scenario][seed] for scenario in scenarios) for seed in sorted(complete)]


def _published(section: BenchmarkRecipe, scenarios: Sequence[str], method: str) -> list[Record]:
    """What papers print for a method; their average as printed, or computed where all scenarios shown are there."""
    rows = []
    for table in section.published:
        values = table.values.get(method)
        if not values:
            continue
        shown = {scenario: values.get(scenario) for scenario in scenarios}
        average = values.get(AVERAGE) if len(scenarios) == len(section.scenarios) else None
        known = [value for value in shown.values() if value is not None]
        if average is None and len(known) == len(scenarios):
            average = round(statistics.fmean(known), 4)
        rows.append({"method": method, "network": "published", "from": table.paper, "scenarios": shown,
                     AVERAGE: average})  # fmt: skip
    return rows


def _paired(cells: Sequence[Cell], methods: Sequence[str], reference: str, kind: str) -> list[Record]:
    """Points by which the reference's student is ahead of each other method's, over pairs of scenario and seed."""
    mine = {(cell.scenario, cell.seed): cell.target("student", kind) for cell in cells if cell.method == reference}
    rows = []
    for method in methods:
        if method == reference:
            continue
        pairs = []
        for cell in cells:
            ours, theirs = mine.get((cell.scenario, cell.seed)), cell.target("student", kind)
            if cell.method == method and ours is not None and theirs is not None:
                pairs.append((cell.scenario, cell.seed, round(ours - theirs, 4)))
        points = [points for _, _, points in pairs]
        rows.append({
            "method": method, **spread(points), "wins": sum(point > 0 for point in points),
            "ties": sum(point == 0 for point in points),
            "pairs": [dict(zip(("scenario", "seed", "points"), pair, strict=True)) for pair in pairs],
        })  # fmt: skip
    return rows


def _cost(cells: Sequence[Cell], scenarios: Sequence[str], method: str) -> Record:
    """Seconds of a cell by scenario, and pairs/s over all."""
    seconds = _values(cells, method, "wall_s")
    speeds = _values(cells, method, "pairs_per_s")
    return {
        "method": method,
        "wall_s": _spreads(seconds, scenarios),
        "pairs_per_s": spread([speed for by_seed in speeds.values() for speed in by_seed.values()]),
    }


def _rules(rows: Sequence[Record]) -> dict[str, list[str]]:
    """The methods by the rule that chose their epochs."""
    rules: dict[str, list[str]] = {}
    for row in rows:
        if row["rule"] and row["method"] not in rules.setdefault(row["rule"], []):
            rules[row["rule"]].append(row["method"])
    return rules


COSTS = ("student_gmacs", "student_params_m")


def _student(rows: Sequence[Record]) -> list[Record]:
    """The students that were trained, usually one: backbone, mean GMACs and parameters in millions, and whose.

    Each cell of a method that prunes ends with other widths.
    """
    found: dict[tuple[Any, ...], list[str]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method and row["student"]]
        for backbone in dict.fromkeys(row["student"] for row in mine):
            costs = [[row[key] for row in mine if row["student"] == backbone] for key in COSTS]
            means = (None if None in cost else round(statistics.mean(cost), 4) for cost in costs)
            found.setdefault((backbone, *means), []).append(method)
    return [
        {"backbone": backbone, "gmacs": gmacs, "params_m": params_m, "methods": methods}
        for (backbone, gmacs, params_m), methods in found.items()
    ]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "timm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
