"""benchmarks/selection.py on metrics made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.selection import (
    RULES,
    across,
    across_blindly,
    choose,
    correlation,
    epoch_table,
    im,
    im_and_snd,
    im_late,
    im_times_source,
    last,
    lost,
    read_runs,
    run_table,
    snd,
    source,
    spread,
)


def epochs(*lines: tuple[float, float, float, float]) -> list[dict[str, Any]]:
    """Epochs of (im, snd, held-out source accuracy, target accuracy)."""
    return [
        {"scores": {"im": line[0], "snd": line[1]}, "source_accuracy": line[2], "target_accuracy": line[3]}
        for line in lines
    ]


RUN = epochs((1.0, 4.0, 80, 50), (1.6, 3.0, 90, 70), (1.5, 2.0, 95, 65), (1.2, 1.0, 95, 60))


def test_points_lost_by_each_rule():
    # oracle: 70 at the second epoch. source accuracy ties at 95: the later one, 60
    assert {name: lost(RUN, rule) for name, rule in RULES.items()} == {
        "last": 10, "im": 0, "snd": 20, "held-out source": 10, "im x source": 0, "im + snd ranks": 0,
        "im, second half": 5,
    }  # fmt: skip


def test_scores():
    assert last(RUN) == [0, 1, 2, 3]
    assert im_times_source(RUN) == [80.0, pytest.approx(144), pytest.approx(142.5), pytest.approx(114)]
    assert im_and_snd(RUN) == [1 + 4, 4 + 3, 3 + 2, 2 + 1]
    assert im_late(RUN) == [float("-inf"), float("-inf"), 1.5, 1.2]


def test_of_equal_scores_the_later_one_is_taken():
    assert choose([1.0, 2.0, 2.0, 0.5]) == 2


def test_rank_correlation_with_ties_at_their_average_rank():
    accuracies = [epoch["target_accuracy"] for epoch in RUN]
    assert correlation(im(RUN), accuracies) == pytest.approx(1.0)
    assert correlation(snd(RUN), accuracies) == pytest.approx(1 - 6 * (9 + 1 + 1 + 1) / (4 * 15))  # ranks 4321, 1432
    # ranks of source 1, 2, 3.5, 3.5 and of accuracy 1, 4, 3, 2: Pearson's correlation of them, 1.5 / sqrt(4.5 * 5)
    assert correlation(source(RUN), accuracies) == pytest.approx(1.5 / 22.5**0.5)


def test_a_correlation_that_is_not_defined_is_none():
    assert correlation([1, 2], [1, 2]) is None
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1, 2, 3], [5, 5, 5]) is None
    assert spread([None, 0.5, 1.0], 2) == "0.75 ± 0.35 (2 of 3)"
    assert spread([None], 2) is None


def test_choosing_among_runs():
    better = epochs((1.7, 1.0, 90, 80), (1.8, 1.0, 91, 85))
    confident_and_wrong = epochs((1.9, 0.5, 70, 20), (1.0, 0.4, 70, 30))
    runs = [RUN, better, confident_and_wrong]
    # by im: epochs with (1.6, 70), (1.8, 85), (1.9, 20); the last is taken and 65 points are lost
    assert across(runs, im) == (pytest.approx(-0.5), 65)
    # by held-out source: (95, 60), (91, 85), (70, 30 at the later of two ties)
    assert across(runs, source) == (pytest.approx(0.5), 25)
    assert across_blindly(runs) == pytest.approx(85 - (60 + 85 + 30) / 3)


def write_run(folder: Path, method: str, seed: int, student: list[dict], finished: bool = True) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        f"method: {method}\ndata: {{source: data/mnist, target: data/usps}}\ntrain: {{seed: {seed}}}\n"
    )
    reference = epochs((0.5, 1.0, 90, 40), (0.6 + seed, 1.0, 91, 45))
    lines = [{"stage": "source-only", "networks": {"source_only": line}} for line in reference]
    lines += [{"stage": "warm-up", "networks": {}}]
    lines += [{"stage": "distillation", "networks": {"student": line}} for line in reversed(student)]
    lines += [{"stage": "adaptation", "networks": {"student": line}} for line in student]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "summary.json").write_text("{}")


def test_finished_runs_are_read_and_what_they_share_counts_once(tmp_path: Path):
    write_run(tmp_path / "a" / "seed-0", "kd-uda", 0, RUN)
    write_run(tmp_path / "b" / "seed-0", "uda", 0, RUN[:3])
    write_run(tmp_path / "b" / "seed-1", "uda", 1, RUN[1:], finished=False)
    found = read_runs([tmp_path, tmp_path / "a"])
    assert [(each.method, each.role, len(each.epochs)) for each in found] == [
        ("kd-uda, mmd", "student", 4), ("source-only", "source_only", 2), ("uda, mmd", "student", 3),
    ]  # fmt: skip
    assert found[0].scenario == "mnist -> usps"
    assert found[0].epochs == tuple(RUN), "of the last stage alone"
    assert "| kd-uda, mmd | 1 | snd | -0.20 | 20.0 |" in epoch_table(found)
    # by source accuracy: (95, 60), (91, 45), (95, 65): ranks 2.5, 1, 2.5 and 2, 1, 3, so 1.5 / sqrt(1.5 * 2)
    assert "| mnist -> usps | 3 | held-out source | 0.87 | 0.0 |" in run_table(found)
    assert "| mnist -> usps | 3 | im | 1.00 | 0.0 |" in run_table(found)


def test_runs_without_target_labels_are_left_out(tmp_path: Path):
    write_run(tmp_path / "r", "uda", 0, [{**line, "target_accuracy": None} for line in RUN])
    assert [each.role for each in read_runs([tmp_path])] == ["source_only"]
