"""How good is choosing without target labels? Over finished runs: which epoch each rule takes, and which run.

    python benchmarks/selection.py runs/benchmark-digits [FOLDER ...] > selection.md

Reads metrics.jsonl, recipe.yaml and summary.json of every finished run below the folders and trains nothing. A network
that several runs have in common, such as the source-only student of one seed, counts once.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import rankdata, spearmanr

from edgeda.artifacts import METRICS, RECIPE, SUMMARY
from edgeda.recipe_file import load_recipe
from edgeda.report.tables import Column, markdown_table

Record = Mapping[str, Any]


def im(epochs: Sequence[Record]) -> list[float]:
    """Information maximization of target predictions."""
    return [epoch["scores"]["im"] for epoch in epochs]


def snd(epochs: Sequence[Record]) -> list[float]:
    """Soft neighborhood density of target predictions."""
    return [epoch["scores"]["snd"] for epoch in epochs]


def source(epochs: Sequence[Record]) -> list[float]:
    """Accuracy on source images held out of training."""
    return [epoch["source_accuracy"] for epoch in epochs]


def im_times_source(epochs: Sequence[Record]) -> list[float]:
    """Product of im (never negative but for rounding) and source accuracy."""
    return [a * b for a, b in zip(im(epochs), source(epochs), strict=True)]


def im_and_snd(epochs: Sequence[Record]) -> list[float]:
    """Sum of the ranks by im and by snd among the candidates, ties at their average rank."""
    return [float(a + b) for a, b in zip(rankdata(im(epochs)), rankdata(snd(epochs)), strict=True)]


def last(epochs: Sequence[Record]) -> list[float]:
    """The number of the epoch."""
    return [float(index) for index in range(len(epochs))]


def im_late(epochs: Sequence[Record]) -> list[float]:
    """im, in the second half of the epochs alone."""
    half = len(epochs) // 2
    return [score if index >= half else float("-inf") for index, score in enumerate(im(epochs))]


Score = Callable[[Sequence[Record]], list[float]]
SCORES: dict[str, Score] = {
    "im": im, "snd": snd, "held-out source": source, "im x source": im_times_source, "im + snd ranks": im_and_snd,
}  # fmt: skip
RULES: dict[str, Score] = {"last": last, **SCORES, "im, second half": im_late}


@dataclass(frozen=True)
class Trajectory:
    """The epochs of one network of one run, each with scores, source and target accuracy."""

    run: str
    scenario: str
    method: str
    role: str
    epochs: tuple[Record, ...]


def choose(scores: Sequence[float]) -> int:
    """Where the largest score is; of equal ones the last, as in training."""
    return max(range(len(scores)), key=lambda index: (scores[index], index))


def target(epochs: Sequence[Record]) -> list[float]:
    """Target-test accuracy, percent."""
    return [epoch["target_accuracy"] for epoch in epochs]


def correlation(scores: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their average rank; None below three values or when one side is constant."""
    if len(scores) < 3 or len(set(scores)) == 1 or len(set(accuracies)) == 1:
        return None
    return float(spearmanr(scores, accuracies).statistic)


def lost(epochs: Sequence[Record], rule: Score) -> float:
    """Points of target accuracy below the best epoch."""
    accuracies = target(epochs)
    return max(accuracies) - accuracies[choose(rule(epochs))]


def across(runs: Sequence[Sequence[Record]], score: Score) -> tuple[float | None, float]:
    """Choosing among runs, each at the epoch that the same score takes: rank correlation, and points lost.

    Lost against the best of these candidates, so that a bad choice of epoch is not counted twice.
    """
    candidates = [epochs[choose(score(epochs))] for epochs in runs]
    return correlation(score(candidates), target(candidates)), lost(candidates, score)


def across_blindly(runs: Sequence[Sequence[Record]]) -> float:
    """Points lost on average by taking any run at its last epoch."""
    accuracies = [target(epochs)[-1] for epochs in runs]
    return max(accuracies) - statistics.fmean(accuracies)


def read_runs(folders: Sequence[Path]) -> list[Trajectory]:
    """Every network whose target accuracy is known over two or more epochs of its last stage."""
    found: list[Trajectory] = []
    seen: set[tuple[str, str]] = set()
    paths = {path.parent.resolve() for folder in folders for path in folder.rglob(SUMMARY)}
    for run in sorted(path for path in paths if (path / METRICS).is_file() and (path / RECIPE).is_file()):
        recipe = load_recipe(str(run / RECIPE))
        lines = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
        scenario = f"{Path(recipe.data.source).name} -> {Path(recipe.data.target).name}"
        adapted = f"{recipe.method}, {'+'.join(recipe.adapt.alignment)}"
        for role in ("student", "teacher", "source_only"):
            scored = [line for line in lines if role in line.get("networks", {})]
            of_last = [line for line in scored if line["stage"] == scored[-1]["stage"]]
            epochs = tuple(line["networks"][role] for line in of_last)
            copy = (scenario, json.dumps(epochs))
            if len(epochs) < 2 or copy in seen or any(epoch["target_accuracy"] is None for epoch in epochs):
                continue
            seen.add(copy)
            alone = role == "source_only" or recipe.method == "source-only"
            found.append(Trajectory(run.name, scenario, "source-only" if alone else adapted, role, epochs))
    return found


def spread(values: Sequence[float | None], decimals: int) -> str | None:
    """Mean and sample standard deviation of what is defined, and of how many that was where some are not."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = f" ± {statistics.stdev(known):.{decimals}f}" if len(known) > 1 else ""
    counted = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{statistics.fmean(known):.{decimals}f}{deviation}{counted}"


def epoch_table(found: Sequence[Trajectory]) -> str:
    """Rank correlation and points lost of every rule over the epochs of a run, by method and over all."""
    groups: dict[str, list[Trajectory]] = {}
    for each in found:
        groups.setdefault(f"{each.method}{' (teacher)' if each.role == 'teacher' else ''}", []).append(each)
    groups = {
        "all students": [each for each in found if each.role != "teacher"],
        "all teachers": [each for each in found if each.role == "teacher"],
        **dict(sorted(groups.items())),
    }
    rows = [
        {
            "network": name, "n": len(members), "rule": rule,
            "correlation": spread([correlation(score(each.epochs), target(each.epochs)) for each in members], 2)
            if rule != "im, second half" else None,
            "lost": spread([lost(each.epochs, score) for each in members], 1),
        }
        for name, members in groups.items() if members
        for rule, score in RULES.items()
    ]  # fmt: skip
    columns = [
        Column("network", "network"), Column("n", "networks"), Column("rule", "rule"),
        Column("correlation", "Spearman with target accuracy"), Column("lost", "lost against oracle", "points"),
    ]  # fmt: skip
    return markdown_table(rows, columns)


def run_table(found: Sequence[Trajectory]) -> str:
    """Choosing among the students of one scenario, by each score."""
    scenarios: dict[str, list[Sequence[Record]]] = {}
    for each in found:
        if each.role != "teacher":
            scenarios.setdefault(each.scenario, []).append(each.epochs)
    rows = []
    for scenario, runs in scenarios.items():
        if len(runs) < 2:
            continue
        rows.append({"scenario": scenario, "n": len(runs), "score": "any run, last epoch", "correlation": None,
                     "lost": f"{across_blindly(runs):.1f}"})  # fmt: skip
        for name, score in SCORES.items():
            ranked, points = across(runs, score)
            shown = None if ranked is None else f"{ranked:.2f}"
            rows.append({"scenario": scenario, "n": len(runs), "score": name, "correlation": shown,
                         "lost": f"{points:.1f}"})  # fmt: skip
    columns = [
        Column("scenario", "scenario"), Column("n", "students"), Column("score", "score"),
        Column("correlation", "Spearman with target accuracy"), Column("lost", "lost against the best run", "points"),
    ]  # fmt: skip
    return markdown_table(rows, columns) if rows else "No scenario has two students to choose from."


def report(found: Sequence[Trajectory]) -> str:
    """Both tables, and what their numbers mean."""
    return "\n".join([
        "## Choosing an epoch", "",
        "Mean ± sample standard deviation over networks; of equal scores the later epoch is taken. Spearman: ties at "
        "their average rank; not defined where score or accuracy is the same in all epochs, or below three epochs: "
        "then in how many it was is in brackets. `last`: the number of the epoch. `im + snd ranks`: sum of both "
        "ranks. `im, second half`: the first half of the epochs is left out.", "",
        epoch_table(found), "",
        "## Choosing among runs", "",
        "All students of a scenario, source-only ones included, whatever method and seed, each at the epoch that the "
        "same score takes; lost against the best of these. `any run` is the mean of taking one blindly.", "",
        run_table(found),
    ])  # fmt: skip


def main() -> None:
    """Print the tables over the folders named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    found = read_runs(parser.parse_args().folders)
    if not found:
        parser.exit(2, "error: no finished run with target accuracies of two or more epochs below these folders\n")
    print(report(found))


if __name__ == "__main__":
    main()
