"""A table of the demo: several seeds of the recipe `digits`, and what each part of it is worth.

    python benchmarks/demo_table.py --seeds 0 1 2 --out runs/demo-table

Runs that are finished under --out are not repeated; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from pathlib import Path

import torch

from edgeda.adapt import adapt
from edgeda.artifacts import RunDirectory
from edgeda.console import TrainingDisplay, set_up_logging
from edgeda.data import load_target, load_test
from edgeda.inference import estimate_statistics, predict_logits
from edgeda.models import load_network
from edgeda.profiling.machine import machine_line
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.report.tables import Column, markdown_table
from edgeda.scoring import SCORED_IMAGES
from edgeda.selection import accuracy

ROLES = {"source_only": "source-only student", "student": "adapted student", "teacher": "adapted teacher"}
COLUMNS = [Column("network", "network"), Column("last", "last epoch", "%"), Column("selected", "selected", "%")]


def with_target_statistics(run: RunDirectory, recipe: Recipe) -> float:
    """Target-test accuracy of the source-only student with BatchNorm statistics of the target (AdaBN), percent."""
    network, card = load_network(run.weights("source_only"))
    estimate_statistics(network, load_target(recipe.data, SCORED_IMAGES).squares, card.preprocessing)
    test = load_test(recipe.data.target_test or "", card.classes, card.preprocessing)
    logits = predict_logits(network.eval(), test.squares, card.preprocessing)
    return accuracy(logits, torch.from_numpy(test.labels))


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-table"))
    arguments = parser.parse_args()
    set_up_logging()
    last: dict[str, list[float]] = {}
    selected: dict[str, list[float]] = {}
    seconds = []
    for seed in arguments.seeds:
        run = RunDirectory(arguments.out / f"seed-{seed}")
        recipe = load_recipe("digits", {"train.seed": seed})
        if not (run.path / "summary.json").is_file():
            adapt(recipe, run.path, TrainingDisplay(), resume=(run.path / "recipe.yaml").is_file())
        summary = run.summary()
        seconds.append(summary["wall_s"])
        for role, name in ROLES.items():
            last.setdefault(name, []).append(summary["accuracy"][role]["target"]["last"])
            selected.setdefault(name, []).append(summary["accuracy"][role]["target"]["selected"])
        selected.setdefault("source-only student, target BatchNorm statistics", []).append(
            with_target_statistics(run, recipe)
        )
    rows = [
        {"network": name, "last": spread(last.get(name)), "selected": spread(selected[name])}
        for name in sorted(selected, key=lambda name: statistics.mean(selected[name]))
    ]
    print(markdown_table(rows, COLUMNS))
    print(
        f"\nMean and standard deviation over seeds {arguments.seeds}, {datetime.date.today()}, {machine_line()}, "
        f"{statistics.mean(seconds):.0f} s of training a seed. Selected by im, without target labels."
    )


def spread(values: list[float] | None) -> str | None:
    """Mean and sample standard deviation."""
    if not values:
        return None
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
