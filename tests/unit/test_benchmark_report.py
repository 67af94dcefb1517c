"""A benchmark's numbers against values worked out by hand, and what its three formats show."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from edgeda.benchmark_recipe import BenchmarkRecipe
from edgeda.report.benchmark import Cell, spread, tabulate
from edgeda.report.benchmark_text import benchmark_text, comma_separated, figure, markdown, missing_line, sentences

SECTION = BenchmarkRecipe.model_validate({
    "scenarios": {"A->W": {"source": "a", "target": "w"}, "W->A": {"source": "w", "target": "a"}},
    "methods": {"KD-UDA": {}, "UDA, MCC": {"method": "uda"}},
    "published": [
        {"from": "Paper I", "values": {"KD-UDA": {"A->W": 81.1, "W->A": 70.2}}},
        {"from": "Paper II", "values": {"KD-UDA": {"A->W": 90, "average": 88.8}}},
    ],
})  # fmt: skip
STUDENT = {"gmacs": 1.82, "params_m": 11.19}


def summary(selected: float | None, teacher: float | None = None, rule: str = "im") -> dict[str, Any]:
    """As adapt writes it: the last epoch is 5 points below the selected one, the oracle 3 above."""

    def target(value: float | None) -> dict[str, float | None]:
        if value is None:
            return {"last": None, "selected": None, "oracle": None}
        return {"last": value - 5, "selected": value, "oracle": value + 3}

    return {
        "edgeda": "0.1.0", "student": "resnet18", "teacher": "resnet50" if teacher else None, "wall_s": 100.0,
        "pairs_per_s": 50.0, "precision": "fp32", "machine": None, "selection": {"rule": rule, "epoch": 7},
        "accuracy": {
            "student": {"target": target(selected), "source": 95.0},
            "teacher": {"target": target(teacher), "source": 97.0 if teacher else None},
            "source_only": {"target": target(50.0), "source": 96.0},
        },
        "complexity": {"student": STUDENT},
        "verdict": {"ship": "adapted", "evidence": {"im": {"adapted": 1.5}, "snd": {"adapted": 3.0}}},
    }  # fmt: skip


def cell(scenario: str, method: str, seed: int, selected: float | None, teacher: float | None = None) -> Cell:
    return Cell(scenario, method, seed, Path(f"{scenario}/{method}/{seed}"), summary(selected, teacher))


CELLS = [
    cell("A->W", "KD-UDA", 0, 80, 90), cell("A->W", "KD-UDA", 1, 84, 92),
    cell("W->A", "KD-UDA", 0, 60, 70), cell("W->A", "KD-UDA", 1, 62, 72),
    cell("A->W", "UDA, MCC", 0, 78), cell("A->W", "UDA, MCC", 1, 85), cell("W->A", "UDA, MCC", 0, 60),
    Cell("W->A", "UDA, MCC", 1, Path("none"), reason="no such folder: w"),
]  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    return {"out": "runs/office31", **tabulate("office31", SECTION, CELLS, "KD-UDA")}


def row(result: dict[str, Any], kind: str, method: str, network: str = "student") -> dict[str, Any]:
    (found,) = (
        row for row in result["tables"][kind] if (row["method"], row["network"]) == (method, network)
    )  # fmt: skip
    return found


def test_spread_is_the_sample_deviation():
    assert spread([80, 84]) == {"mean": 82.0, "std": pytest.approx(8**0.5, abs=1e-4), "n": 2}
    assert spread([80]) == {"mean": 80.0, "std": None, "n": 1}
    assert spread([]) == {"mean": None, "std": None, "n": 0}


def test_mean_and_deviation_by_scenario_and_the_average_by_seed_first(result):
    mine = row(result, "selected", "KD-UDA")
    assert mine["scenarios"]["A->W"]["mean"] == 82.0
    assert mine["scenarios"]["W->A"] == {"mean": 61.0, "std": pytest.approx(2**0.5, abs=1e-4), "n": 2}
    # seed 0: (80 + 60) / 2 = 70, seed 1: (84 + 62) / 2 = 73
    assert mine["average"] == {"mean": 71.5, "std": pytest.approx(3 / 2**0.5, abs=1e-4), "n": 2}


def test_an_average_takes_only_seeds_with_all_scenarios(result):
    # seed 1 has no W->A: averaging its 85 in would raise the method by what is missing
    assert row(result, "selected", "UDA, MCC")["average"] == {"mean": 69.0, "std": None, "n": 1}


def test_selected_last_and_oracle_are_three_tables(result):
    means = {kind: row(result, kind, "KD-UDA")["scenarios"]["A->W"]["mean"] for kind in result["tables"]}
    assert means == {"selected": 82.0, "last": 77.0, "oracle": 85.0}


def test_teachers_are_rows_of_their_own_where_there_are_any(result):
    assert row(result, "selected", "KD-UDA", "teacher")["average"]["mean"] == 81.0
    assert ("UDA, MCC", "teacher") not in {(row["method"], row["network"]) for row in result["tables"]["selected"]}


def test_published_figures_stand_beside_ours_with_their_source(result):
    first, second = (row for row in result["tables"]["selected"] if row["network"] == "published")
    assert (first["from"], first["scenarios"]["W->A"], first["average"]) == ("Paper I", 70.2, pytest.approx(75.65))
    assert (second["scenarios"]["W->A"], second["average"]) == (None, 88.8), "as printed"


def test_a_published_average_over_other_scenarios_is_not_shown():
    some = tabulate("office31", SECTION, [cell for cell in CELLS if cell.scenario == "W->A"], None)
    first, second = (row for row in some["tables"]["selected"] if row["network"] == "published")
    assert (first["average"], second["average"]) == (70.2, None)


def test_paired_differences(result):
    (other,) = result["paired"]["selected"]
    # A->W: 80 - 78 = 2 and 84 - 85 = -1; W->A: 60 - 60 = 0; W->A of seed 1 has no partner
    assert [pair["points"] for pair in other["pairs"]] == [2.0, -1.0, 0.0]
    assert other["mean"] == pytest.approx(1 / 3, abs=1e-4)
    assert other["std"] == pytest.approx((14 / 3 / 2) ** 0.5, abs=1e-4)
    assert (other["wins"], other["ties"], other["n"]) == (1, 1, 3)
    assert sentences(result, "selected") == [
        "KD-UDA is 0.3 ± 1.5 points better than UDA, MCC: better in 1 of 3 pairs of scenario and seed, 1 tied"
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (70.0, 73.5, "KD-UDA is 3.5 points worse than UDA, MCC: better in 0 of 1 pair of scenario and seed"),
        (70.0, 70.04, "KD-UDA is level (-0.0 points) with UDA, MCC: better in 0 of 1 pair of scenario and seed"),
    ],
)
def test_the_sentence_says_which_way(ours: float, theirs: float, said: str):
    cells = [cell("A->W", "KD-UDA", 0, ours), cell("A->W", "UDA, MCC", 0, theirs)]
    assert sentences(tabulate("x", SECTION, cells, "KD-UDA"), "selected") == [said]


def test_no_reference_no_comparison():
    assert sentences(tabulate("x", SECTION, CELLS, None), "selected") == []


def test_without_target_labels_there_are_dashes_and_no_comparison():
    blind = tabulate("x", SECTION, [cell("A->W", "KD-UDA", 0, None), cell("A->W", "UDA, MCC", 0, None)], "KD-UDA")
    assert row(blind, "selected", "KD-UDA")["scenarios"]["A->W"] == {"mean": None, "std": None, "n": 0}
    assert sentences(blind, "selected") == []
    assert "| KD-UDA | student | - | - | - |" in markdown(blind)
    assert "KD-UDA" in benchmark_text({"out": "x", **blind})


def test_figures_say_on_how_many_seeds_they_rest():
    assert figure(spread([80, 84]), 2) == "82.0 ± 2.8"
    assert figure(spread([80]), 2) == "80.0 (n=1)"
    assert figure(spread([80]), 1) == "80.0"
    assert figure(spread([]), 2) is None


def test_markdown_has_three_tables_headed_by_how_the_epoch_was_chosen(result):
    text = markdown(result)
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads[0] == "## Target accuracy at the epoch selected by im, without target labels (%)"
    assert "last epoch" in heads[1]
    assert "oracle" in heads[2]
    assert "| KD-UDA | student | 82.0 ± 2.8 | 61.0 ± 1.4 | 71.5 ± 2.1 | 2 |" in text
    assert "| KD-UDA | student | 77.0 ± 2.8 | 56.0 ± 1.4 | 66.5 ± 2.1 | 2 |" in text
    assert "| UDA, MCC | student | 81.5 ± 4.9 | 60.0 (n=1) | 69.0 (n=1) | 2 |" in text
    assert "| KD-UDA | published: Paper I | 81.1 | 70.2 | 75.7 | - |" in text
    assert "student: resnet18, 1.82 GMACs, 11.2 M parameters" in text
    assert "- W->A, UDA, MCC, seed 1: no such folder: w" in text


def test_different_rules_are_named_with_their_methods_and_oracle_is_called_unfair():
    unfair = Cell("A->W", "UDA, MCC", 0, Path("x"), summary(70, rule="oracle"))
    text = markdown(tabulate("x", SECTION, [cell("A->W", "KD-UDA", 0, 80), unfair], None))
    assert "im, without target labels (KD-UDA); oracle, with target-test labels: not a fair result (UDA, MCC)" in text


def test_csv_has_a_line_for_each_cell_with_every_number(result):
    lines = list(csv.DictReader(io.StringIO(comma_separated(result))))
    assert len(lines) == len(CELLS)
    first, missing = lines[0], lines[-1]
    assert (first["student_selected"], first["student_last"], first["student_oracle"]) == ("80.0", "75.0", "83.0")
    assert (first["teacher_selected"], first["source_only_selected"], first["student_source"]) == (
        "90.0",
        "50.0",
        "95.0",
    )
    assert (first["wall_s"], first["student_gmacs"], first["rule"], first["epoch"]) == ("100.0", "1.82", "im", "7")
    assert (missing["finished"], missing["student_selected"], missing["reason"]) == ("False", "", "no such folder: w")


def test_json_is_plain_json(result):
    assert json.loads(json.dumps(result, allow_nan=False))["missing"] == [
        {"scenario": "W->A", "method": "UDA, MCC", "seed": 1, "reason": "no such folder: w"}
    ]


def test_the_text_fits_a_terminal_and_leaves_scenarios_out_before_it_breaks(result):
    text = benchmark_text(result, 100)
    assert "82.0 ± 2.8" in text
    assert "[2] Paper II" in text
    assert text.endswith("\nwritten to runs/office31: benchmark.md, .csv and .json")
    names = [f"long scenario name {number}" for number in range(12)]
    many = BenchmarkRecipe.model_validate(
        {"scenarios": {name: {"source": "a", "target": "b"} for name in names}, "methods": {"KD-UDA": {}}}
    )
    tables = tabulate("x", many, [cell(name, "KD-UDA", 0, 70.0) for name in names], None)
    wide = benchmark_text({"out": "x", **tables}, 100)
    assert "long scenario name" not in wide
    assert "70.0" in wide
    for line in (text + wide).splitlines():
        assert len(line) <= 100 or line.startswith(("KD-UDA is", "recipe", "machine"))


def test_the_only_scenario_is_named_and_not_averaged():
    one = BenchmarkRecipe.model_validate(
        {"scenarios": {"digits -> mnist": {"source": "a", "target": "b"}}, "methods": {"KD-UDA": {}}}
    )
    tables = tabulate("x", one, [cell("digits -> mnist", "KD-UDA", 0, 70.0)], None)
    text = benchmark_text({"out": "x", **tables}, 100)
    assert text.startswith("\nscenario: digits -> mnist\nTarget accuracy at")
    assert "verage" not in text
    assert "Accuracy at the last epoch" in text
    assert "| digits -> mnist" in markdown({"out": "x", **tables})


def test_missing_cells_are_one_line_with_each_reason_once():
    gaps = [Cell("A->W", "KD-UDA", seed, Path("x"), reason="no such folder: w") for seed in range(3)]
    result = tabulate("x", SECTION, [*gaps, Cell("W->A", "KD-UDA", 0, Path("x"), reason="diverged")], None)
    assert missing_line(result) == (
        "4 of 4 cells are missing: no such folder: w (A->W, KD-UDA, seed 0 and 2 more); diverged (W->A, KD-UDA, seed 0)"
    )
