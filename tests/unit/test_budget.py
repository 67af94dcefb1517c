"""Who is on the Pareto front, and what a budget of milliseconds buys."""

from __future__ import annotations

import pytest

from edgeda.errors import InputError
from edgeda.report.pareto import budget_ms, front, ship


def row(percent: float | None, ms: float | None, **more: object) -> dict:
    known = {"model": "m", "engine": "torch", "target_accuracy": percent, "median_ms": ms, "p99_ms": ms, "run": "r"}
    return known | more


def test_the_front_is_what_nobody_beats_in_both():
    rows = [row(80, 10), row(70, 5), row(69, 6), row(80, 20), row(None, 1), row(90, None)]
    assert front(rows) == [True, True, False, False, False, False]


def test_latencies_that_differ_by_the_measurement_alone_decide_nothing():
    assert front([row(79, 1.03), row(52, 1.0)]) == [True, False]
    assert front([row(79, 1.03), row(79, 1.0)]) == [True, True]
    assert front([row(79, 1.2), row(52, 1.0)]) == [True, True]


def test_a_budget_buys_the_most_accurate_that_fits_or_names_the_nearest():
    rows = [row(80, 10), row(70, 4, p99_ms=9.0), row(60, 1.0)]
    assert ship(rows, 12)["row"] == 0
    bought = ship(rows, 5)
    assert bought["row"] == 1
    assert "p99 of 9.00 ms is over the budget" in bought["sentence"]
    nothing = ship(rows, 0.5)
    assert (nothing["row"], nothing["nearest"]) == (None, 2)
    assert "none fits; the nearest is m in torch: 1.00 ms" in nothing["sentence"]


def test_without_target_labels_the_label_free_verdict_chooses():
    rows = [row(None, 1.0, network="teacher"), row(None, 3.0, network="student"), row(None, 4.0, network="source_only")]
    assert ship(rows, 5, {"r": {"verdict": {"ship": "adapted"}}})["row"] == 1
    assert ship(rows, 5, {"r": {"verdict": {"ship": "source-only"}}})["row"] == 2
    assert "label-free" in ship(rows, 5, {"r": {"verdict": None}})["sentence"]


def verdicts(**taken: str) -> dict[str, dict]:
    """Of runs with two classes, where a student that is taken guesses if its run is called `guesses`."""
    return {
        run: {
            "classes": ["a", "b"],
            "verdict": {"ship": ship_},
            "accuracy": {"student": {"source": 51.0 if run == "guesses" else 95.0}},
        }
        for run, ship_ in taken.items()
    }


def test_every_run_is_chosen_from_by_its_own_verdict():
    rows = [row(None, 3.0, run="a", network="student"), row(None, 4.0, run="a", network="source_only"),
            row(None, 2.0, run="b", network="student"), row(None, 2.5, run="b", network="source_only")]  # fmt: skip
    assert ship(rows, 5, verdicts(a="adapted", b="source-only"))["row"] == 3
    assert ship(rows, 5, verdicts(a="source-only", b="adapted"))["row"] == 2
    assert ship(rows[:3], 5, verdicts(a="adapted", b="source-only"))["row"] == 0
    shared = {**rows[1], "median_ms": 1.0, "also_of": ["b"]}
    assert ship([rows[0], shared, rows[2]], 5, verdicts(a="source-only", b="adapted"))["row"] == 2, "b's is better"
    assert ship([shared], 5, verdicts(a="source-only", b="adapted"))["row"] is None
    assert ship([shared], 5, verdicts(a="source-only", b="source-only"))["row"] == 0


def test_the_caution_is_of_the_run_that_is_shipped():
    rows = [row(None, 3.0, run="learned", network="student"), row(None, 2.0, run="guesses", network="student")]
    summaries = verdicts(learned="adapted", guesses="adapted")
    assert "close to guessing" in ship(rows, 5, summaries)["sentence"]
    assert "close to guessing" not in ship(rows[:1], 5, summaries)["sentence"]
    many = {"a": {"classes": ["x"] * 10}, "b": {"classes": ["x"] * 2}}
    assert "close to guessing" not in ship([row(50, 1.0, run="a")], 5, many)["sentence"]
    assert "close to guessing" in ship([row(50, 1.0, run="b")], 5, many)["sentence"]


def test_what_fits_without_a_known_accuracy_is_counted_and_how_to_know_it():
    tested = {"r": {"target_test": "my camera"}}
    rows = [row(81, 38.0, model="student", network="student"),
            row(None, 3.0, model="student.onnx", network="student", file="r/exports/student.onnx")]  # fmt: skip
    found = ship(rows, 5, tested)
    assert (found["row"], found["nearest"], found["candidates"]) == (None, 0, [1])
    assert found["sentence"] == (
        "within 5 ms: 1 row fits, but its accuracy on the target is not known: student.onnx in torch: 3.00 ms "
        "(edgeda evaluate r/exports/student.onnx --data 'my camera' tells); the nearest of known accuracy is student "
        "in torch: 38.0 ms, 81.0 % on the target"
    )
    ample = ship(rows, 50, tested)
    assert (ample["row"], ample["candidates"]) == (0, [1])
    assert "; 1 more row fits, but its accuracy on the target is not known: student.onnx" in ample["sentence"]
    tight = ship(rows, 1, tested)
    assert (tight["row"], tight["nearest"], tight["candidates"]) == (None, 1, [])
    assert tight["sentence"] == "within 1 ms: none fits; the nearest is student.onnx in torch: 3.00 ms"


def test_candidates_of_unknown_accuracy_are_those_worth_trying():
    rows = [
        row(70, 30.0, network="student"), row(80, 40.0, network="teacher"),
        row(None, 2.0, network="student", model="small"), row(None, 3.0, network="teacher", model="large"),
        row(None, 1.0, network="pruned", trained=False), row(None, 2.0, run="unlabelled", network="source_only"),
        row(None, 4.0, run="unlabelled", network="student"),
    ]  # fmt: skip
    found = ship(rows, 5, verdicts(unlabelled="adapted"))
    assert found["candidates"] == [3, 2, 6], (
        "the better networks first; what a verdict refuses, or is no network, never"
    )
    assert (
        "3 rows fit, but their accuracy on the target is not known: the first to try is large in" in found["sentence"]
    )
    assert "(edgeda evaluate r --role teacher --data D tells)" in found["sentence"]


@pytest.mark.parametrize(("text", "ms"), [("5ms", 5), ("0.5 s", 500), ("800us", 0.8)])
def test_budgets_have_a_unit(text: str, ms: float):
    assert budget_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["5", "0ms", "-1ms", "1.2.3ms", "", "fast"])
def test_a_budget_that_makes_no_sense(text: str):
    with pytest.raises(InputError, match="--budget"):
        budget_ms(text)
