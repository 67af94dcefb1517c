"""`edgeda adapt --from RUN --target NEW`: the networks of a finished run adapt again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from edgeda.report.summary import verdict_lines
from tests.conftest import Edgeda, Folders, write_digits


@pytest.fixture(scope="module")
def again(edgeda: Edgeda, run_directory: Path, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `folders`, adapted again to its own target, at a learning rate that moves no weight."""
    out = tmp_path_factory.mktemp("again") / "second"
    ran = edgeda("adapt", "--from", run_directory, "--target", folders.target, "--target-test", folders.target_test,
                 "--set", "student.lr=1e-12", "--set", "teacher.lr=1e-12", "--epochs", 1, "--out", out)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "student of finished as it was" in ran.out
    assert "source-only" not in ran.out.replace("--role source_only", "").replace("resnet", "")
    return out


def test_the_networks_begin_with_the_selected_weights_of_the_run(again: Path, run_directory: Path):
    for role in ("student", "teacher"):
        before, after = (load_file(run / f"{role}.safetensors") for run in (run_directory, again))
        trained = [name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        for name in trained:
            assert torch.allclose(before[name], after[name], atol=1e-6), name
        statistics = [name for name in before if name.endswith("running_mean")]
        assert any(not torch.equal(before[name], after[name]) for name in statistics), "it has been trained"
    summary = json.loads((again / "summary.json").read_text())
    assert summary["started_from"] == "finished"
    assert summary["weights_from"]["teacher"].startswith("the run finished (teacher.safetensors, sha256 ")


def test_the_reference_is_the_runs_own_student_unchanged(again: Path, run_directory: Path):
    before, after = load_file(run_directory / "student.safetensors"), load_file(again / "source_only.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (json.loads((run / "summary.json").read_text())["accuracy"] for run in (run_directory, again))
    assert second["source_only"]["target"]["selected"] == first["student"]["target"]["selected"]
    assert second["source_only"]["source"] == first["student"]["source"]


def test_every_page_calls_the_reference_by_its_name(command: Edgeda, again: Path, tmp_path: Path):
    name = "student of finished as it was"
    ran = command("report", again, "--seconds", 0.01, "--out", tmp_path / "report.html")
    assert ran.code == 0, ran.err
    page = (tmp_path / "report.html").read_text()
    for words in (f"the {name} (", f"Features of the {name}", f"Confusion: {name}", "earlier: <span", f"<li>{name}"):
        assert words in page.replace("</svg>", "</svg><li>"), words
    visible = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert "source-only" not in visible.replace("Losses: source-only", "").replace("Losses of stage source-only", "")
    ran = command("compare", again, "--seconds", 0.01)
    assert (ran.code, "source-only student" in ran.out, f"the {name} on the target" in ran.out) == (0, False, True)
    summary = json.loads((again / "summary.json").read_text())
    said, *_ = verdict_lines({**summary, "accuracy": None, "verdict": {"ship": "source-only", "reason": "worse"}})
    assert said == f"verdict (label-free): ship the {name}: worse"


def test_nothing_warms_up(again: Path):
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [("source-only", 0), ("joint", 1)]


def test_the_result_is_a_run_that_repeats_and_goes_on(command: Edgeda, again: Path, folders: Folders, tmp_path: Path):
    """Its recipe repeats it to the bit; it can be adapted again itself, and without labels of the new target."""
    ran = command("adapt", "--recipe", again / "recipe.yaml", "--out", tmp_path / "repeated")
    assert ran.code == 0, ran.err
    student, repeated = (load_file(run / "student.safetensors") for run in (again, tmp_path / "repeated"))
    assert all(torch.equal(student[name], repeated[name]) for name in student)
    ran = command("adapt", "--from", again, "--target", folders.target, "--method", "uda", "--epochs", 1,
                  "--out", tmp_path / "third", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["target_test"] is None
    assert ran.json["accuracy"]["student"]["target"]["selected"] is None
    assert ran.json["teacher"] is None
    assert ran.json["started_from"] == "second"


def test_what_does_not_fit_the_run_is_said_before_anything_is_written(
    command: Edgeda, run_directory: Path, folders: Folders, tmp_path: Path
):
    out = tmp_path / "out"
    start = ("adapt", "--from", run_directory, "--out", out)
    target = ("--target", folders.target)
    assert "--target is missing" in command(*start).error
    assert "leave --student out" in command(*start, *target, "--student", "r18").error
    assert "leave --teacher out" in command(*start, *target, "--teacher", "r50").error
    assert "bottleneck 8" in command(*start, *target, "--set", "student.bottleneck=8").error
    assert "does not adapt" in command(*start, *target, "--method", "source-only").error
    assert "leave --recipe out" in command(*start, *target, "--recipe", "digits").error
    assert "leave --from out" in command(*start, *target, "--resume").error
    assert "is the run that is adapted again" in command(*start[:-1], run_directory, *target, "--overwrite").error
    assert "no such model" in command("adapt", "--from", tmp_path / "none", *target).error
    write_digits(tmp_path / "others", 6, 0, "png", "0129")
    assert "other classes" in command(*start, *target, "--source", tmp_path / "others").error
    assert not out.exists()
    assert (run_directory / "summary.json").is_file()


def test_a_run_that_lacks_what_is_needed_is_refused(
    command: Edgeda, run_directory: Path, folders: Folders, tmp_path: Path
):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run_directory / "recipe.yaml", half)
    ran = command("adapt", "--from", half, "--target", folders.target)
    assert ran.code == 2
    assert "has not finished" in ran.error
    shutil.copy(run_directory / "summary.json", half)
    shutil.copy(run_directory / "student.safetensors", half)
    ran = command("adapt", "--from", half, "--target", folders.target)
    assert "has no teacher, which method kd-uda trains; --method uda" in ran.error
    image = tmp_path / "picture.png"
    Image.new("RGB", (40, 40)).save(image)
    ran = command("adapt", "--from", image, "--target", folders.target)
    assert ran.code == 2


def test_a_pruned_student_adapts_again_as_it_is_shaped(
    command: Edgeda, run_directory: Path, folders: Folders, tmp_path: Path
):
    quick = ("--set", "prune.minimum=4", "--set", "prune.score_steps=1", "--iterations", 1, "--epochs", 1)
    pruned = command("prune", run_directory, "--macs-cut", 0.2, *quick, "--out", tmp_path / "pruned", "--json")
    assert pruned.code == 0, pruned.err
    ran = command("adapt", "--from", tmp_path / "pruned", "--target", folders.target, "--epochs", 1, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["method"] == "uda"
    assert ran.json["complexity"]["student"] == pruned.json["complexity"]["student"]
    assert ran.json["started_from"] == "pruned"
