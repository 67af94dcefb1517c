"""`edgeda benchmark` on folders of real images, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
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
    for _ in range(6000):
        if (first.parent.parent / "KD-UDA" / "seed-0" / "recipe.yaml").is_file():
            break
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=300)
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
    assert "/seed-0 has 20.0, now 4.0 is asked for" in other.error
    assert other.error.startswith("error: recipe: distill.tau: the cell ")


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


def holder(folder: Path) -> int | None:
    """The process that has a run directory's lock file open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if descriptor.readlink() == folder / ".lock":
                return int(descriptor.parts[2])
        except OSError:
            continue
    return None


def test_on_ray_a_killed_cell_goes_on_ctrl_c_leaves_a_state_and_nothing_is_made_twice(
    command: Edgeda, environment: dict[str, str], folders: Folders, recipe: Path, tmp_path: Path
):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    values = yaml.safe_load(recipe.read_text())
    gone = {"source": str(folders.source), "target": str(tmp_path / "nowhere")}
    values["benchmark"]["scenarios"] = {"lab->gone": gone, **values["benchmark"]["scenarios"]}
    values["train"] |= {"epochs": 4, "checkpoint_minutes": 0}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    arguments = ["benchmark", "--recipe", str(recipe), "--seeds", "1", "--out", str(tmp_path / "o")]
    started = subprocess.Popen(
        [sys.executable, "-m", "edgeda", *arguments, "--workers", "2"], cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    cell = tmp_path / "o" / "lab-to-camera" / "KD-UDA" / "seed-0"
    finished = cell.parent.parent / "source-only" / "seed-0"

    def process_that_trains(other_than: int | None = None) -> int:
        for _ in range(3000):
            if (cell / "checkpoint").is_dir() and (pid := holder(cell)) not in (None, other_than):
                return pid
            assert started.poll() is None, started.communicate()[1]
            time.sleep(0.02)
        raise AssertionError("the cell was not trained")

    first = process_that_trains()
    os.kill(first, signal.SIGKILL)
    process_that_trains(other_than=first)
    before = files(finished)
    assert "summary.json" in before
    os.killpg(started.pid, signal.SIGINT)  # as a terminal sends it: to Ray's processes, too
    printed, err = started.communicate(timeout=120)
    assert started.returncode == 2, err
    assert printed == ""
    assert "lab->camera, KD-UDA, seed 0: its process died; trying again" in err
    assert f"lab->gone, source-only, seed 0: no such folder or file: {tmp_path / 'nowhere'}" in err
    assert "stopped; 1 of 4 cells are finished" in err
    assert "Traceback" not in err
    assert (cell / "checkpoint" / "state.safetensors").is_file()
    assert not (cell / "summary.json").exists()

    ran = command(*arguments, "--json")
    assert ran.code == 2
    assert "2 of 4 cells are missing" in ran.error
    assert files(finished) == before
    lines = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["stage"] == "joint"] == [1, 2, 3, 4]
    assert [line.get("shared") for line in lines if line["stage"] == "source-only"] == [True] * 4


def test_a_recipe_without_the_section(command: Edgeda, tmp_path: Path):
    ran = command("benchmark", "--recipe", "default")
    assert ran.code == 2
    assert "'default' has no section 'benchmark'" in ran.error
    assert not (tmp_path / "runs").exists()


def test_adapt_ignores_the_section(command: Edgeda, recipe: Path, tmp_path: Path):
    ran = command("adapt", "--recipe", recipe, "--method", "source-only", "--out", tmp_path / "r", "--json")
    assert ran.code == 0, ran.err
    assert "benchmark" not in yaml.safe_load((tmp_path / "r" / "recipe.yaml").read_text())
