"""Rows of pruned teachers: cuts of equal latency, and trained versions that are still of this run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgeda.artifacts import RunDirectory, sha256
from edgeda.errors import InputError
from edgeda.models import Architecture, NetworkCard, build_network, save_network
from edgeda.report.compare import compare_runs, compare_text
from edgeda.report.pruned import Cut, Pruner, parse_cuts, train_pruned
from edgeda.runtime.preprocessing import Preprocessing
from edgeda.watching import Deaf


@pytest.mark.parametrize("text", ["", "45", "0,0.5", "a", "nan"])
def test_cuts_that_make_no_sense(text: str):
    with pytest.raises(InputError, match="--pruned"):
        parse_cuts(text)
    assert parse_cuts("0.12, 0.45") == (0.12, 0.45)


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
