"""`edgeda adapt` on folders of real images, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.numpy import load_file

from tests.conftest import TINY, Edgeda, Folders

CONTRACT = {
    "edgeda", "method", "alignment", "teacher", "student", "source", "target", "classes", "seed", "epochs", "machine",
    "wall_s", "pairs_per_s", "selection", "accuracy", "verdict", "complexity",
}  # fmt: skip


def test_the_run_directory_keeps_its_contract(run_directory: Path):
    summary = json.loads((run_directory / "summary.json").read_text())
    assert set(summary) >= CONTRACT
    assert summary["classes"] == ["0", "1", "2", "3"]
    assert set(summary["accuracy"]) == {"student", "teacher", "source_only"}
    for role in summary["accuracy"].values():
        assert set(role["target"]) == {"last", "selected", "oracle"}
        assert role["target"]["oracle"] >= max(role["target"]["last"], role["target"]["selected"])
        assert 0 <= role["source"] <= 100
    assert summary["verdict"]["ship"] in ("adapted", "source-only")
    assert summary["complexity"]["student"]["params_m"] == pytest.approx(0.373, abs=0.001)
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "student.safetensors",
        "teacher.safetensors",
        "source_only.safetensors",
    ):
        assert (run_directory / name).is_file()
    assert not list(run_directory.rglob("*.part"))


def test_metrics_have_a_line_for_every_epoch(run_directory: Path):
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        ("student warm-up", 1),
        ("teacher warm-up", 1),
        ("source-only", 1),
        ("source-only", 2),
        ("joint", 1),
        ("joint", 2),
    ]
    assert {"mmd", "target_kd", "source_kd"} <= set(lines[-1]["losses"])


def test_the_saved_recipe_repeats_the_run_bit_for_bit(fresh: Edgeda, run_directory: Path, tmp_path: Path):
    ran = fresh("adapt", "--recipe", run_directory / "recipe.yaml", "--out", tmp_path / "again", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["accuracy"] == json.loads((run_directory / "summary.json").read_text())["accuracy"]
    for role in ("student", "teacher", "source_only"):
        assert (tmp_path / "again" / f"{role}.safetensors").read_bytes() == (
            run_directory / f"{role}.safetensors"
        ).read_bytes()


def test_another_seed_gives_another_student(command: Edgeda, run_directory: Path, tmp_path: Path):
    ran = command("adapt", "--recipe", run_directory / "recipe.yaml", "--seed", 1, "--out", tmp_path / "other")
    assert ran.code == 0, ran.err
    mine, other = (load_file(folder / "student.safetensors") for folder in (run_directory, tmp_path / "other"))
    assert any((mine[name] != other[name]).any() for name in mine)


def test_without_target_labels_accuracy_is_null_and_there_is_a_verdict(
    command: Edgeda, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgeda.pretrained._can_be_had", lambda name: False)
    ran = command(
        "adapt", "--source", folders.source, "--target", folders.target, *TINY, "--epochs", 1, "--out", tmp_path / "r",
        "--set", "teacher.pretrained=auto", "--set", "student.pretrained=auto", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    said = "warning: teacher test_resnet and student test_resnet: from scratch: no pretrained weights could be had ("
    assert (ran.err.count(said), ran.err.count("pretrained")) == (1, 1), "once"
    assert ran.json["accuracy"]["student"]["target"] == {"last": None, "selected": None, "oracle": None}
    assert ran.json["verdict"]["evidence"]["images"] == 32


def test_source_only_ships_the_source_only_student(command: Edgeda, folders: Folders, tmp_path: Path):
    out = tmp_path / "r"
    ran = command("adapt", *folders.arguments, *TINY, "--method", "source-only", "--epochs", 1, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["teacher"] is None
    assert ran.json["accuracy"]["student"] == ran.json["accuracy"]["source_only"]
    compared = command("compare", out, "--seconds", 0.05, "--json")
    assert compared.code == 0, compared.err


def test_backbones_with_buffers_that_are_not_saved(
    command: Edgeda, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As those of many transformers: a later stage begins with the selected weights of an earlier one."""
    create = timm.create_model

    def with_a_grid(name: str, **options: Any) -> torch.nn.Module:
        model: torch.nn.Module = create(name, **options)
        model.register_buffer("grid", torch.arange(3.0), persistent=False)
        return model

    monkeypatch.setattr(timm, "create_model", with_a_grid)
    ran = command(
        "adapt", *folders.arguments, *TINY, "--method", "uda-then-kd", "--epochs", 1, "--out", tmp_path / "run"
    )
    assert ran.code == 0, ran.err


def test_end_to_end_and_per_domain_batchnorm_run(command: Edgeda, folders: Folders, tmp_path: Path):
    ran = command(
        "adapt", *folders.arguments, *TINY, "--epochs", 1, "--out", tmp_path / "r", "--alignment", "mmd,mcc",
        "--set", "distill.end_to_end=true", "--set", "adapt.batchnorm=per-domain", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["alignment"] == ["mmd", "mcc"]


SLOWER = [*TINY, "--set", "teacher.backbone=resnet10t", "--set", "student.backbone=resnet10t"]
"""Epochs that last long enough for a signal to come in the middle of one."""


def start(environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgeda", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {count} lines")


@pytest.fixture(scope="module")
def undisturbed(edgeda: Edgeda, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    ran = edgeda("adapt", *folders.arguments, *SLOWER, "--epochs", 2, "--out", out)
    assert ran.code == 0, ran.err
    return out


@pytest.mark.parametrize("finished_epochs", [0, 4])
def test_killed_in_mid_epoch_it_resumes_to_the_same_student(
    edgeda: Edgeda,
    environment: dict[str, str],
    folders: Folders,
    tmp_path: Path,
    undisturbed: Path,
    finished_epochs: int,
):
    out = tmp_path / "killed"
    often = ["--set", "train.checkpoint_minutes=0.02"]
    process = start(environment, "adapt", *folders.arguments, *SLOWER, "--epochs", 2, *often, "--out", out)
    wait_for_lines(out / "metrics.jsonl", finished_epochs, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "summary.json").exists()

    resumed = edgeda("adapt", "--out", out, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["accuracy"] == json.loads((undisturbed / "summary.json").read_text())["accuracy"]
    assert (out / "student.safetensors").read_bytes() == (undisturbed / "student.safetensors").read_bytes()


def test_ctrl_c_saves_the_state_and_says_how_to_go_on(
    edgeda: Edgeda, environment: dict[str, str], folders: Folders, tmp_path: Path
):
    out = tmp_path / "stopped"
    process = start(environment, "adapt", *folders.arguments, *SLOWER, "--epochs", 50, "--out", out)
    wait_for_lines(out / "metrics.jsonl", 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert f"edgeda adapt --out {out} --resume" in err
    assert "Traceback" not in err
    assert (out / "checkpoint" / "state.safetensors").is_file()

    other = edgeda("adapt", "--out", out, "--resume", "--epochs", 2)
    assert other.code == 2
    assert f"--epochs: the run in {out} has 50, now 2 is asked for" in other.error


def test_a_recipe_edited_after_the_checkpoint_is_refused(command: Edgeda, run_directory: Path, tmp_path: Path):
    import shutil

    out = tmp_path / "edited"
    shutil.copytree(run_directory, out)
    (out / "summary.json").unlink()
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    recipe["distill"]["tau"] = 7.0
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ran = command("adapt", "--out", out, "--resume")
    assert ran.code == 2
    assert "another recipe" in ran.error


def test_too_little_memory_names_what_to_lower(
    command: Edgeda, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12884901888 bytes")

    monkeypatch.setattr("edgeda.adapt._run", run)
    ran = command("adapt", *folders.arguments, "--batch-size", 64, "--out", tmp_path / "run")
    assert ran.code == 2
    assert "batches of 64 and 64 images; lower --batch-size (in a recipe: train.batch_size)" in ran.error
    assert ran.error.endswith("--set data.input_size")


def test_a_full_disk_is_one_line_and_keeps_what_was_there(edgeda: Edgeda, folders: Folders):
    """Writes to a small file system of its own where that is allowed, else says why not."""
    small = Path("/tmp/edgeda-small-disk")
    small.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small]).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        ran = edgeda("adapt", *folders.arguments, *TINY, "--epochs", 1, "--out", small / "run")
        assert ran.code == 2
        assert "disk is full" in ran.error
        assert not list(small.rglob("*.part"))
    finally:
        subprocess.run(["umount", small], check=True)
        small.rmdir()
