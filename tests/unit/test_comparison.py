"""What comparisons and reports say of a run, and plots and pages that cannot be broken into."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from edgeda.artifacts import RunDirectory
from edgeda.models import Architecture, build_network
from edgeda.report import svg
from edgeda.report.compare_rows import exported_accuracy, exported_role, facts, manifest_beside, short_names
from edgeda.report.evidence import Evidence, confusion, domain_gap, layer_costs, pca, samples
from edgeda.report.pareto import ship
from edgeda.report.report import timed_calls
from edgeda.report.sections import head_section, headline
from edgeda.report.summary import contradicted, verdict_lines
from edgeda.report.svg import escape
from tests.unit.test_budget import row


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
