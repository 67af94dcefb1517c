"""Whole runs of methods and alignments: stopped and resumed, and sharing stages with other runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import edgeda.adapt
from edgeda.adapt import adapt, adapt_recipe, resolve
from edgeda.errors import InputError
from edgeda.models import Architecture
from edgeda.recipe import Recipe
from edgeda.watching import Record
from tests.conftest import TINY, Folders


class Watcher:
    """Stops the process, as far as the run can tell, at a step of its last stage."""

    def __init__(self, stop_in: str = "", stop_at: int | None = None) -> None:
        self.stop_in, self.stop_at, self.names, self.steps = stop_in, stop_at, [""], 0

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        self.names.append(name)
        self.steps = done

    def step(self, pairs: int) -> None:
        self.steps += 1
        if self.names[-1] == self.stop_in and self.steps == self.stop_at:
            raise KeyboardInterrupt

    def epoch(self, record: Record) -> None:
        pass


def recipe(folders: Folders, **values: object) -> Recipe:
    tiny = [word for word in TINY if "=" in word and word.partition("=")[0] not in values]
    options = {
        "data.source": str(folders.source), "data.target": str(folders.target), "train.precision": "fp32",
        "train.batch_size": 16, "train.epochs": 1, "train.threads": 1, **values,
    }  # fmt: skip
    return adapt_recipe(None, options, tiny, None, False)


def test_a_run_with_heads_and_dropout_resumes_to_the_same_student(
    folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Building the heads anew draws random numbers, which must not shift those that the run goes on with."""
    chosen = {"adapt.alignment": ["mdd", "cdan+e"], "distill.loss": "dkd", "train.warmup_epochs": 0}
    adapt(recipe(folders, **chosen), tmp_path / "whole", Watcher())
    often = recipe(folders, **chosen, **{"train.checkpoint_minutes": 0})
    with pytest.raises(KeyboardInterrupt):
        adapt(often, tmp_path / "killed", Watcher("joint", 2))
    with caplog.at_level("INFO"):
        adapt(often, tmp_path / "killed", Watcher(), resume=True)
    (said,) = [record.getMessage() for record in caplog.records if "going on" in record.getMessage()]
    assert said == "going on from stage joint (2 of 2), epoch 1 of 1, after 1 of its 2 batches"
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert students[0] == students[1]
    losses = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])["losses"]
    assert set(losses) == {
        "mdd", "cdan+e", "cross_entropy", "target_kd", "source_kd", "student_cross_entropy"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "stage"),
    [("adda", "adda"), ("cckdn", "compression warm-up"), ("cckdn", "student adaptation"),
     ("uda-then-kd", "distillation"), ("kd-then-uda", "student adaptation")],
)  # fmt: skip
def test_any_method_resumes_to_the_same_student(folders: Folders, tmp_path: Path, method: str, stage: str):
    """In any stage: modules that an earlier stage trained, and selected weights handed on, must come back."""
    chosen = {"method": method, "train.checkpoint_minutes": 0, "cckdn.width": 8}
    if method.startswith(("uda", "kd")):
        chosen["adapt.alignment"] = ["dann"]
    shared = tmp_path / "shared"
    adapt(recipe(folders, **chosen), tmp_path / "whole", Watcher(), shared=shared)
    with pytest.raises(KeyboardInterrupt):
        adapt(recipe(folders, **chosen), tmp_path / "killed", Watcher(stage, 2), shared=shared)
    adapt(recipe(folders, **chosen), tmp_path / "killed", Watcher(), resume=True)
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert students[0] == students[1]


def test_stages_in_common_are_trained_once_and_change_nothing(folders: Folders, tmp_path: Path):
    shared = tmp_path / "shared"
    alone, first, second = Watcher(), Watcher(), Watcher()
    one = adapt(recipe(folders, method="uda"), tmp_path / "alone", alone)
    adapt(recipe(folders, method="source-only"), tmp_path / "first", first, shared=shared)
    two = adapt(recipe(folders, method="uda"), tmp_path / "second", second, shared=shared)
    assert first.names[1:] == ["student warm-up", "source-only"]
    assert second.names[1:] == ["student adaptation"]
    assert one["accuracy"] == two["accuracy"]
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("alone", "second")]
    assert weights[0] == weights[1]
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("shared", False) for line in lines] == [True, True, False]


@pytest.mark.parametrize(
    "change",
    [{"train.seed": 1}, {"student.lr": 0.02}, {"data.augment.rotate": 3.0}, {"select.rule": "last"}],
)
def test_stages_are_not_shared_where_anything_they_depend_on_differs(
    folders: Folders, tmp_path: Path, change: dict[str, object]
):
    shared, watcher = tmp_path / "shared", Watcher()
    adapt(recipe(folders, method="source-only"), tmp_path / "first", Watcher(), shared=shared)
    adapt(recipe(folders, method="source-only", **change), tmp_path / "second", watcher, shared=shared)
    assert watcher.names[1:] == ["student warm-up", "source-only"]


def test_another_teacher_shares_the_students_stages_alone(folders: Folders, tmp_path: Path):
    shared, watcher = tmp_path / "shared", Watcher()
    adapt(recipe(folders), tmp_path / "first", Watcher(), shared=shared)
    adapt(recipe(folders, **{"teacher.lr": 0.02}), tmp_path / "second", watcher, shared=shared)
    assert watcher.names[1:] == ["teacher warm-up", "joint"]


def test_what_each_method_reports(folders: Folders, tmp_path: Path):
    """A teacher and an alignment where there were any; the student is the one the method trained."""
    learns = {"teacher.backbone": "resnet10t", "student.backbone": "resnet10t"}  # within an epoch
    for method, teacher, alignment in (("adda", False, False), ("kd-then-uda", True, True), ("uda", False, True)):
        summary = adapt(
            recipe(folders, method=method, **learns), tmp_path / method, Watcher(), shared=tmp_path / "shared"
        )
        assert (summary["teacher"] is not None) == teacher
        assert (summary["alignment"] is not None) == alignment
        assert summary["accuracy"]["student"] != summary["accuracy"]["source_only"]


def test_other_test_images_are_not_scored_by_shared_stages(folders: Folders, tmp_path: Path):
    """A shared stage brings its accuracies along: with other labelled images it must be trained and scored anew."""
    watcher, shared = Watcher(), tmp_path / "shared"
    chosen = {"method": "source-only"}
    adapt(recipe(folders, **chosen), tmp_path / "first", Watcher(), shared=shared)
    with_test = {**chosen, "data.target_test": str(folders.target_test)}
    assert adapt(recipe(folders, **with_test), tmp_path / "b", watcher, shared=shared)["accuracy"]["source_only"][
        "target"
    ]["last"] is not None  # fmt: skip
    assert watcher.names[1:] == ["source-only"], "the warm-up is not scored: it is the same whatever the target"


def test_a_damaged_shared_stage_is_trained_again(folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shared, watcher = tmp_path / "shared", Watcher()
    one = adapt(recipe(folders, method="source-only"), tmp_path / "first", Watcher(), shared=shared)
    for file in shared.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    two = adapt(recipe(folders, method="source-only"), tmp_path / "second", watcher, shared=shared)
    assert watcher.names[1:] == ["student warm-up", "source-only"]
    assert one["accuracy"] == two["accuracy"]
    assert "trained again" in caplog.text


def test_epochs_taken_over_in_part_leave_nothing_behind(
    folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The second epoch of a teacher's stage is damaged: it is trained again, from the weights it began with."""
    shared, chosen = tmp_path / "shared", {"method": "kd-then-uda", "train.epochs": 2, "train.warmup_epochs": 0}
    adapt(recipe(folders, **chosen), tmp_path / "first", Watcher(), shared=shared, many_targets=True)
    (damaged,) = shared.glob("teacher-on-the-source-*/epoch-2/*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    adapt(recipe(folders, **chosen), tmp_path / "second", Watcher(), shared=shared, many_targets=True)
    assert "trained again" in caplog.text
    one, two = (load_file(tmp_path / name / "teacher.safetensors") for name in ("first", "second"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_from_another_runs_weights_shares_nothing_with_it(folders: Folders, tmp_path: Path):
    """Two runs of the same name in different folders are not the same start."""
    shared = tmp_path / "shared"
    for at, seed in (("a", 0), ("b", 1)):
        adapt(recipe(folders, **{"train.seed": seed}), tmp_path / at / "seed-0", Watcher())
    watchers = [Watcher(), Watcher()]
    for at, watcher in zip(("a", "b"), watchers, strict=True):
        chosen = {"method": "kd-then-uda", "start_from": str(tmp_path / at / "seed-0")}
        adapt(recipe(folders, **chosen), tmp_path / at / "again", watcher, shared=shared)
    assert watchers[1].names == watchers[0].names, "the second trained every stage itself"


def test_the_network_that_trains_decides_the_precision(folders: Folders, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def probe(precision: str, device: str, architecture: Architecture, size: int) -> str:
        asked.append(architecture.backbone)
        return "fp32"

    monkeypatch.setattr(edgeda.adapt, "resolve_precision", probe)
    for method in ("uda", "kd-uda"):
        asking = recipe(folders, method=method)
        teacher = asking.teacher.model_copy(update={"backbone": "resnet50"})
        resolve(asking.model_copy(update={"teacher": teacher}))
    assert asked == [recipe(folders).student.backbone, "resnet50"]


def test_the_fixed_teacher_keeps_the_statistics_it_was_trained_with(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It teaches on source images, too: BatchNorm statistics of the target alone are for shipping."""
    from edgeda.methods.distillation import Distill

    seen: list[dict[str, torch.Tensor]] = []
    step = Distill.step

    def spy(method: Distill, *arguments: object) -> object:
        seen.append({n: b.clone() for n, b in method.workshop.networks["teacher"].module.named_buffers()})
        return step(method, *arguments)

    monkeypatch.setattr(Distill, "step", spy)
    chosen = {"method": "uda-then-kd", "adapt.target_statistics": True, "select.rule": "last"}
    adapt(recipe(folders, **chosen), tmp_path / "r", Watcher())
    shipped = load_file(tmp_path / "r" / "teacher.safetensors")
    first = seen[0]["backbone.bn1.running_mean"]
    assert not torch.allclose(first, shipped["backbone.bn1.running_mean"])
    assert all(torch.equal(buffers["backbone.bn1.running_mean"], first) for buffers in seen), "and is in eval mode"


def test_not_enough_memory_is_one_line(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from edgeda.methods.source_only import SourceOnly

    def step(method: SourceOnly, *arguments: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(SourceOnly, "step", step)
    with pytest.raises(InputError, match="not enough memory for batches of 16 and 16 images; lower"):
        adapt(recipe(folders), tmp_path / "r", Watcher())
