"""Who is on the Pareto front, what a budget buys, cuts of equal latency, plots and pages that cannot be broken into."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeda.artifacts import RunDirectory, sha256
from edgeda.errors import InputError
from edgeda.models import Architecture, NetworkCard, build_network, save_network
from edgeda.report import svg
from edgeda.report.compare import compare_runs, compare_text
from edgeda.report.compare_rows import exported_accuracy, exported_role, facts, manifest_beside, short_names
from edgeda.report.evidence import Evidence, confusion, domain_gap, layer_costs, pca, samples
from edgeda.report.pareto import budget_ms, front, ship
from edgeda.report.pruned import Cut, Pruner, parse_cuts, train_pruned
from edgeda.report.report import timed_calls
from edgeda.report.sections import head_section, headline
from edgeda.report.summary import contradicted, verdict_lines
from edgeda.report.svg import escape
from edgeda.runtime.preprocessing import Preprocessing
from edgeda.watching import Deaf


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


@pytest.mark.parametrize("text", ["", "45", "0,0.5", "a", "nan"])
def test_cuts_that_make_no_sense(text: str):
    with pytest.raises(InputError, match="--pruned"):
        parse_cuts(text)
    assert parse_cuts("0.12, 0.45") == (0.12, 0.45)


def summary(student: float | None, source_only: float | None, ship_: str) -> dict:
    found = {"student": {"target": {"selected": student}}, "source_only": {"target": {"selected": source_only}}}
    return {"accuracy": found, "verdict": {"ship": ship_, "reason": "because"}}


def test_labels_that_contradict_the_verdict_are_heard():
    assert contradicted(summary(70, 60, "adapted")) is None
    assert contradicted(summary(60, 70, "source-only")) is None
    assert contradicted(summary(60, 60.05, "adapted")) is None
    assert contradicted(summary(None, None, "adapted")) is None
    assert "the source-only student is better, 70.0 % against 60.0 %" in str(contradicted(summary(60, 70, "adapted")))
    first, second = verdict_lines(summary(70, 60, "source-only"))
    assert first == "verdict (label-free): ship the source-only student: because"
    assert "the adapted student is better" in second


@pytest.mark.parametrize(
    ("im", "source", "target", "sign"),
    [
        (0.2, 90.0, 80.0, "im 0.2 of at most 2.3"),
        (2.0, 18.9, 80.0, "18.9 % right on the source, by chance 10.0 %"),
        (2.0, 90.0, 12.0, "12.0 % right on the target, by chance 10.0 %"),
    ],
)
def test_a_student_that_guesses_is_sold_nowhere(im: float, source: float, target: float, sign: str):
    adapted = {"target": {"selected": target}, "source": source}
    ran = {
        "classes": [str(digit) for digit in range(10)],
        "accuracy": {"student": adapted, "source_only": {"target": {"selected": 11.0}, "source": 90.0}},
        "verdict": {"ship": "adapted", "reason": "because", "evidence": {"im": {"adapted": im, "source_only": 2.0}}},
    }
    caution = f"the adapted student is close to guessing ({sign}): train longer"
    assert verdict_lines(ran) == [
        f"verdict: not ready to ship: {caution}", "of the two students, without labels: the adapted student: because"
    ]  # fmt: skip
    assert headline(ran, []) == "Do not ship this yet: the adapted student is close to guessing."
    page = head_section("run", ran, [], Evidence())
    assert ("verdict bad" in page, escape(sign) in page) == (True, True)
    assert caution in ship([row(None, 1.0, network="student")], 5, {"r": ran})["sentence"]
    assert "close to guessing" not in ship([row(80, 1.0)], 5, {"r": ran})["sentence"]
    assert "close to guessing" in ship([row(18, 1.0)], 5, {"r": ran})["sentence"]


def test_a_student_that_has_learned_is_not_called_guessing():
    ran = summary(19.1, 11, "adapted") | {"classes": [str(digit) for digit in range(10)]}
    ran["verdict"]["evidence"] = {"im": {"adapted": 0.24}}
    assert verdict_lines(ran) == ["verdict (label-free): ship the adapted student: because"]


def test_labels_say_nothing_between_two_students_that_guess():
    ran = summary(11, 9, "source-only")
    assert contradicted(ran) is not None
    assert contradicted({**ran, "classes": [str(digit) for digit in range(10)]}) is None


def test_an_oracle_is_never_shown_as_selected(tmp_path: Path):
    found = {"accuracy": {"student": {"target": {"last": 60.0, "selected": 75.0, "oracle": 75.0}, "source": 90.0}}}
    fair = facts(RunDirectory(tmp_path), {**found, "selection": {"rule": "im"}}, "student")
    assert (fair["target_accuracy"], fair["target_last"], fair["target_oracle"]) == (75.0, 60.0, 75.0)
    leaked = facts(RunDirectory(tmp_path), {**found, "selection": {"rule": "oracle"}}, "student")
    assert (leaked["target_accuracy"], leaked["target_selected"], leaked["target_oracle"]) == (None, None, 75.0)


def test_exports_are_known_by_name_and_by_their_own_manifest(tmp_path: Path):
    names = ("student-int8.onnx", "teacher/model.onnx", "source_only/x.xml", "x.onnx")
    assert [exported_role(name) for name in names] == ["student", "teacher", "source_only", "student"]
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # SHA-256 of b"a"
    written = {"sha256": digest, "precision": "int8", "accuracy": {"images": 500, "exported": 71.0}}
    (tmp_path / "manifest.json").write_text(json.dumps(written))
    tested = {"images": {"target_test": 500}}
    assert exported_accuracy(tmp_path / "a.onnx", tested) == 71.0
    assert exported_accuracy(tmp_path / "b.onnx", tested) is None, "the manifest is another file's"
    assert exported_accuracy(tmp_path / "a.onnx", {"images": {"target_test": 2000}}) is None, "not on all images"
    chosen = {**tested, "selection": {"rule": "oracle"}}
    assert exported_accuracy(tmp_path / "a.onnx", chosen) is None, "an oracle's"
    (tmp_path / "b.manifest.json").write_text(json.dumps({"precision": "fp16"}))
    assert manifest_beside(tmp_path / "b.onnx")["precision"] == "fp16"


def test_runs_have_the_shortest_names_that_tell_them_apart(tmp_path: Path):
    runs = [RunDirectory(tmp_path / name) for name in ("uda/seed-0", "kd/seed-0")]
    assert list(short_names(runs)) == ["uda/seed-0", "kd/seed-0"]
    assert list(short_names([RunDirectory(tmp_path / "uda"), RunDirectory(tmp_path / "kd")])) == ["uda", "kd"]


# pruned teachers


@pytest.fixture(scope="module")
def pruned_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A ResNet-18 teacher and a smaller student, untrained."""
    path = tmp_path_factory.mktemp("pruned") / "run"
    path.mkdir()
    unknown = {"target": {"last": None, "selected": None, "oracle": None}, "source": 50.0}
    (path / "summary.json").write_text(json.dumps({"method": "kd-uda", "accuracy": dict.fromkeys(
        ("student", "teacher", "source_only"), unknown)}))  # fmt: skip
    for role, backbone in (("teacher", "resnet18"), ("student", "resnet10t"), ("source_only", "resnet10t")):
        torch.manual_seed(0)
        network, _ = build_network(Architecture(backbone, 3))
        card = NetworkCard(network.architecture, ("<b>a</b>", "b", "c"), Preprocessing(32), role)
        save_network(path / f"{role}.safetensors", network.state_dict(), card)
    return RunDirectory(path)


def test_the_cut_of_equal_latency_is_found_by_measuring(pruned_run: RunDirectory):
    pruner = Pruner(pruned_run)
    pruner.most = lambda: 0.9  # type: ignore[method-assign]
    asked: list[float] = []

    def milliseconds(share: float) -> float:
        asked.append(share)
        return 10 * (1 - share)

    cut, said = pruner.equal_latency(4.0, milliseconds)
    assert cut is not None
    assert cut.share == pytest.approx(0.6, abs=0.02)
    assert len(asked) <= 9
    assert "4" in said
    none, said = pruner.equal_latency(0.5, milliseconds)
    assert none is None
    assert "no cut makes the teacher as fast" in said
    assert pruner.equal_latency(20.0, milliseconds) == (
        None,
        "the teacher is as fast as the student here without pruning",
    )


def test_pruned_teachers_are_rows_of_cost_without_accuracy(pruned_run: RunDirectory):
    compared = compare_runs([pruned_run], pruned=(0.45,), budget_ms=1e6, seconds=0.005, threads=1)
    rows = [found for found in compared["rows"] if found["role"] == "pruned"]
    teacher = next(found for found in compared["rows"] if found["role"] == "teacher")
    assert rows[0]["gmacs"] == pytest.approx(0.55 * teacher["gmacs"], rel=0.02)
    assert all(found["target_accuracy"] is None and not found["front"] and not found["trained"] for found in rows)
    assert all("not trained" in found["model"] for found in rows)
    assert "equal latency in torch: " in compare_text(compared)
    assert "label-free verdict" in compared["ship"]["sentence"]
    json.dumps(compared, allow_nan=False)


@pytest.fixture
def beside(pruned_run: RunDirectory) -> Iterator[Path]:
    """The folder of its teacher trained with 45 % less, empty."""
    folder = pruned_run.path.with_name("run-pruned-450")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_trained_version_is_taken_if_it_began_from_the_teacher_of_now(
    pruned_run: RunDirectory, beside: Path, caplog: pytest.LogCaptureFixture
):
    pruner, written = Pruner(pruned_run), beside / "summary.json"
    now = f"the run run (teacher.safetensors, sha256 {sha256(pruned_run.weights('teacher'))[:12]})"
    written.write_text(json.dumps({"weights_from": {"student": now}}))
    os.utime(written, (0, 0))
    assert pruner.trained(0.45) == RunDirectory(beside), "whatever its age, as after a copy"
    assert caplog.text == ""
    for origin in ("the run run (teacher.safetensors, sha256 0123456789ab)", "from scratch"):
        written.write_text(json.dumps({"weights_from": {"student": origin}}))
        caplog.clear()
        assert pruner.trained(0.45) is None
        assert len(caplog.records) == 1
        assert str(beside) in caplog.text
        assert "--train-pruned" in caplog.text


def test_a_trained_version_that_does_not_tell_what_it_began_from_must_be_younger_than_the_teacher(
    pruned_run: RunDirectory, beside: Path
):
    pruner, written = Pruner(pruned_run), beside / "summary.json"
    written.write_text("{}")
    made = pruned_run.weights("teacher").stat().st_mtime
    os.utime(written, (made + 5, made + 5))
    assert pruner.trained(0.45) == RunDirectory(beside)
    os.utime(written, (made - 5, made - 5))
    assert pruner.trained(0.45) is None


@pytest.mark.parametrize("recipe", ["method: kd-uda", "method: tcp\nprune: {run: runs/other, role: teacher}",
                                    "method: tcp\nprune: {run: runs/run, role: student}"])  # fmt: skip
def test_another_run_in_the_place_of_a_trained_version_is_not_replaced(
    pruned_run: RunDirectory, beside: Path, recipe: str
):
    (beside / "recipe.yaml").write_text(f"data: {{source: lab, target: camera}}\n{recipe}\n")
    (beside / "summary.json").write_text(json.dumps({"weights_from": {"student": "from scratch"}}))
    with pytest.raises(InputError, match="run-pruned-450 is another run"):
        train_pruned(Pruner(pruned_run), Cut(0.45, ""), Deaf())
    assert sorted(path.name for path in beside.iterdir()) == ["recipe.yaml", "summary.json"]


# plots


def parsed(drawing: str) -> ElementTree.Element:
    assert "nan" not in drawing.replace("nano", "")
    return ElementTree.fromstring(drawing)


def test_plots_are_whole_svg_whatever_the_numbers():
    hostile = '</svg><script>alert("x")</script>'
    drawings = [
        svg.lines(hostile, "d", {hostile: [(1, 2.0)], "b": [(1, math.nan), (2, 5.0)]}, "epoch", hostile),
        svg.lines("empty", "d", {}, "epoch", "y"),
        svg.scatter("s", "d", {"a": [(0.0, 0.0)], "b": []}),
        svg.bars("b", "d", [(hostile, [1.0, None]), ("z", [0.0, 0.0])], "%"),
        svg.histogram("h", "d", [2.0, 2.0, 2.0], "ms", {"median": 2.0}),
        svg.matrix("m", "d", [hostile, "b"], [[3, 1], [0, 0]]),
        svg.pareto("p", "d", [(hostile, 1.0, 50.0, True, 0), ("b", 1.0, 50.0, True, 1)], 5.0),
    ]
    for drawing in drawings:
        root = parsed(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert not [one for one in root.iter() if one.tag.endswith("script")]


def test_series_differ_by_shape_not_by_colour_alone():
    shapes = {re.sub(r"s\d|[\d.]+", "", svg.marker(5, 5, series)) for series in range(svg.STYLES)}
    tags = [svg.marker(5, 5, series) for series in range(svg.STYLES)]
    assert len(shapes) + len({tag.count(",") for tag in tags}) >= svg.STYLES
    assert len({re.sub(r"class=\"[^\"]*\"", "", tag) for tag in tags}) == svg.STYLES


def test_ticks_are_round_and_inside():
    assert svg.axis([0, 10], 0, 100, zero=True).ticks() == [0, 2, 4, 6, 8, 10]
    assert svg.axis([1, 3], 0, 100, whole=True).ticks() == [1, 2, 3]
    logarithmic = svg.axis([0.5, 40], 0, 100, log=True)
    assert all(logarithmic.low <= tick <= logarithmic.high for tick in logarithmic.ticks())
    assert logarithmic.at(2) - logarithmic.at(1) == pytest.approx(logarithmic.at(20) - logarithmic.at(10))


def test_control_characters_and_markup_become_text():
    assert svg.escape("a\x00<b>&\ud800") == "a\N{REPLACEMENT CHARACTER}&lt;b&gt;&amp;\N{REPLACEMENT CHARACTER}"


# evidence


def test_layers_cost_what_the_network_costs():
    network, _ = build_network(Architecture("resnet18", 10))
    layers = layer_costs(network, 64)
    assert len(layers) == 21
    assert layers[0]["gmacs"] == pytest.approx(64 * 32 * 32 * 3 * 49 / 1e9)
    assert layers[-1]["gmacs"] == pytest.approx(512 * 10 / 1e9)


def test_confusion_counts_and_domains_apart():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    assert confusion(logits, np.asarray([0, 1, 2, 2]), 3) == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    cloud = np.random.default_rng(0).normal(size=(400, 1)).astype(np.float32)
    assert domain_gap(cloud, cloud) == pytest.approx(0)
    assert domain_gap(cloud, cloud + 3) == pytest.approx(3, rel=0.1)


def test_pca_keeps_the_direction_of_largest_variance():
    random = np.random.default_rng(0)
    points = np.outer(random.normal(size=50) * 10, [0.6, 0.8]) + random.normal(size=(50, 2)) * 0.01
    first = pca(points, 1)[:, 0]
    assert abs(np.corrcoef(first, points @ [0.6, 0.8])[0, 1]) == pytest.approx(1, abs=1e-4)


def test_no_samples_without_images():
    assert samples(Evidence()) == []


def test_single_calls_are_the_ones_that_were_summarized():
    durations, latency = timed_calls(lambda: sum(range(2000)), 0.02)
    assert len(durations) == latency.n
    assert float(np.median(durations)) == pytest.approx(latency.median_ms, rel=0.5)
