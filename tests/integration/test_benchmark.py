"""`edgeda benchmark` on folders of real images, as a user runs it."""

from __future__ import annotations

import csv
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import Edgeda, Folders


@pytest.fixture
def recipe(folders: Folders, tmp_path: Path) -> Path:
    """Two methods, tiny networks, one scenario."""
    network = {"backbone": "resnet10t", "pretrained": "none"}
    domains = {key: str(getattr(folders, key)) for key in ("source", "target", "target_test")}
    values = {
        "name": "tiny digits",
        "data": {**domains, "input_size": 32, "resize": "squash", "crop_pct": 1.0},
        "teacher": network, "student": network,
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "threads": 1},
        "benchmark": {
            "scenarios": {"lab->camera": domains},
            "methods": {"KD-UDA": {"adapt.alignment": ["mcc"]}, "source-only": {"method": "source-only"}},
            "published": [{"from": "a paper", "values": {"KD-UDA": {"lab->camera": 81.1}}}],
        },
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, int]:
    """When each file of a run was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_stopped_between_and_within_cells_it_goes_on_and_touches_nothing_that_is_finished(
    command: Edgeda, environment: dict[str, str], recipe: Path, tmp_path: Path
):
    arguments = ["benchmark", "--recipe", str(recipe), "--seeds", "2"]
    started = subprocess.Popen(
        [sys.executable, "-m", "edgeda", *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out = tmp_path / "runs" / "benchmark-tiny-digits"
    first = out / "lab-to-camera" / "source-only" / "seed-0"
    for _ in range(1200):
        if (first.parent.parent / "KD-UDA" / "seed-0" / "recipe.yaml").is_file():
            break
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 2, err
    assert "of 4 cells are finished" in err
    assert "the same command goes on where this one stopped" in err
    assert "Traceback" not in err
    before = files(first)
    assert {"summary.json", "student.safetensors"} <= set(before)

    ran = command(*arguments, "--json")
    assert ran.code == 0, ran.err
    assert files(first) == before
    summaries = [
        json.loads((out / "lab-to-camera" / "KD-UDA" / f"seed-{seed}" / "summary.json").read_text()) for seed in (0, 1)
    ]
    assert [summary["seed"] for summary in summaries] == [0, 1]
    assert all(summary["alignment"] == ["mcc"] for summary in summaries)
    selected = [summary["accuracy"]["student"]["target"]["selected"] for summary in summaries]
    (row,) = (row for row in ran.json["tables"]["selected"] if (row["method"], row["network"]) == ("KD-UDA", "student"))
    assert row["average"]["mean"] == pytest.approx(statistics.mean(selected), abs=1e-3)
    assert row["average"]["std"] == pytest.approx(statistics.stdev(selected), abs=1e-3)
    assert json.loads((out / "benchmark.json").read_text()) == ran.json
    assert len(list(csv.DictReader((out / "benchmark.csv").read_text(encoding="utf-8").splitlines()))) == 4
    assert "published: a paper | 81.1" in (out / "benchmark.md").read_text()
    assert "benchmark" not in yaml.safe_load((first / "recipe.yaml").read_text())
    assert not list(out.rglob("*.part"))

    shown = command("benchmark", "--recipe", recipe, "--seeds", 2, "--report")
    assert shown.code == 0, shown.err
    assert "selected by im, without target labels" in shown.out
    assert "KD-UDA is" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 120
    other = command("benchmark", "--recipe", recipe, "--seeds", 2, "--set", "distill.tau=4")
    assert other.code == 2
    assert "distill.tau is 20.0, now 4.0 was asked for" in other.error


def test_a_failing_scenario_is_named_after_the_table_and_the_others_go_on(
    command: Edgeda, folders: Folders, recipe: Path, tmp_path: Path
):
    values = yaml.safe_load(recipe.read_text())
    gone = {"source": str(folders.source), "target": "nowhere"}
    values["benchmark"]["scenarios"] = {"lab->gone": gone, **values["benchmark"]["scenarios"]}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    ran = command("benchmark", "--recipe", recipe, "--seeds", 1, "--only", "source-only", "--out", tmp_path / "o")
    assert ran.code == 2
    assert ran.error == (
        "error: 1 of 2 cells are missing: no such folder or file: nowhere (lab->gone, source-only, seed 0)"
    )
    assert "lab->camera" in ran.out
    assert (tmp_path / "o" / "lab-to-camera" / "source-only" / "seed-0" / "summary.json").is_file()
    assert not (tmp_path / "o" / "lab-to-gone" / "source-only" / "seed-0").exists()


def test_a_recipe_without_the_section(command: Edgeda, tmp_path: Path):
    ran = command("benchmark", "--recipe", "default")
    assert ran.code == 2
    assert "'default' has no section 'benchmark'" in ran.error
    assert not (tmp_path / "runs").exists()


def test_adapt_ignores_the_section(command: Edgeda, recipe: Path, tmp_path: Path):
    ran = command("adapt", "--recipe", recipe, "--method", "source-only", "--out", tmp_path / "r", "--json")
    assert ran.code == 0, ran.err
    assert "benchmark" not in yaml.safe_load((tmp_path / "r" / "recipe.yaml").read_text())
