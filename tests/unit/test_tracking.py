"""Curves in TensorBoard and MLflow are those of metrics.jsonl."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from edgeda.errors import MissingExtra
from edgeda.run_folder import OUR_FOLDERS
from edgeda.tracking import FOLDERS, Trackers, curves
from tests.conftest import TINY, Edgeda, Folders

RECORD = {
    "stage": "student warm-up", "epoch": 1, "epochs": 2, "losses": {"cross_entropy": 1.5}, "pairs_per_s": 10.0,
    "networks": {"student": {"scores": {"im": 0.5, "snd": 1.0}, "source_accuracy": 90.0, "target_accuracy": None}},
}  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own deprecations
        found = EventAccumulator(str(folder))
        found.Reload()
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_names_of_curves_leave_out_what_is_not_known():
    assert curves(RECORD) == {
        "loss/student-warm-up/cross_entropy": 1.5, "student/im": 0.5, "student/snd": 1.0,
        "student/source_accuracy": 90.0, "pairs_per_s": 10.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_run_that_goes_on_has_no_epoch_twice(tmp_path: Path, name: str):
    pytest.importorskip(name, reason=f"{name} is not installed")
    for resumed in (False, True):
        trackers = Trackers([name])
        trackers.begin(tmp_path, "run", {"train": {"epochs": 2}, "name": "r"})
        trackers.follow([RECORD])
        if resumed:
            trackers.follow([RECORD, {**RECORD, "epoch": 2, "pairs_per_s": 20.0}])
        trackers.close(resumed)
    if name == "tensorboard":
        found = scalars(tmp_path / "tensorboard")["pairs_per_s"]
    else:
        (metric,) = (tmp_path / "mlruns").rglob("metrics/pairs_per_s")
        found = [(int(line.split()[2]), float(line.split()[1])) for line in metric.read_text().splitlines()]
    assert found == [(1, 10.0), (2, 20.0)]


def test_names_of_losses_are_those_mlflow_takes(tmp_path: Path):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    trackers = Trackers(["mlflow"])
    trackers.begin(tmp_path, "run", {})
    trackers.follow([{**RECORD, "losses": {"cdan+e": 0.5}}])
    trackers.close(True)
    assert [path.name for path in (tmp_path / "mlruns").rglob("metrics/loss/student-warm-up/*")] == ["cdan-e"]


def test_a_tracker_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtra, match=r"edgeda\[track\]"):
        Trackers(["mlflow"])


def test_trackers_write_inside_the_run_and_go_with_it(command: Edgeda, folders: Folders, tmp_path: Path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    out = tmp_path / "r"
    ran = command(
        "adapt", *folders.arguments, *TINY, "--method", "source-only", "--epochs", 1, "--out", out, "--set",
        "train.track=[tensorboard]",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = scalars(out / "tensorboard")
    assert [value for _, value in found["pairs_per_s"]] == pytest.approx([one["pairs_per_s"] for one in records])
    assert set(FOLDERS.values()) <= set(OUR_FOLDERS), "a new run in its place takes them away"
