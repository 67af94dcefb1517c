"""`edgeda fleet` on a Ray of this machine: shared stages, a killed worker, a failing camera, a second call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from edgeda.adapt import adapt
from edgeda.fleet.recipe import load_fleet
from edgeda.fleet.scheduler import requests
from edgeda.watching import Deaf
from tests.conftest import Edgeda, Folders, write_digits

pytest.importorskip("ray", reason="the extra `ray` is not installed")


def state_of(out: Path, camera: str) -> dict:
    path = out / "state" / "cameras" / f"{camera}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def test_a_fleet_with_a_killed_worker_equals_separate_runs_and_repeats_nothing(
    command: Edgeda, environment: dict[str, str], folders: Folders, tmp_path: Path
):
    write_digits(tmp_path / "gate", 6, 30, "png")
    write_digits(tmp_path / "door", 6, 60, "png")
    network = {"backbone": "resnet10t", "pretrained": "none"}
    tiny = {
        "data": {"source": "", "target": "", "input_size": 32, "resize": "squash", "crop_pct": 1.0},
        "teacher": network, "student": network,
        "train": {"epochs": 2, "warmup_epochs": 1, "batch_size": 8, "precision": "fp32", "checkpoint_minutes": 0},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    fleet = {
        "name": "site", "recipe": str(tmp_path / "tiny.yaml"), "source": str(folders.source),
        "cameras": {
            "yard": {"target": str(folders.target), "target_test": str(folders.target_test)},
            "gate": str(tmp_path / "gate"), "door": str(tmp_path / "door"), "gone": str(tmp_path / "gone"),
        },
    }  # fmt: skip
    file, out = tmp_path / "FLEET.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(fleet, sort_keys=False))
    started = subprocess.Popen(
        [sys.executable, "-m", "edgeda", "fleet", str(file), "--out", str(out), "--workers", "2", "--json"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(6000):
        seen = state_of(out, "gate")
        if seen.get("stage") == "joint" and (out / "cameras" / "gate" / "checkpoint").is_dir():
            break
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.02)
    os.kill(seen["pid"], signal.SIGKILL)
    printed, err = started.communicate(timeout=300)
    assert started.returncode == 2, err
    assert "gate: its process died; trying again" in err
    assert "Traceback" not in err
    assert f"1 of 4 cameras failed: gone: no such folder or file on node {os.uname().nodename}" in err
    result = json.loads(printed)
    rows = {row["camera"]: row for row in result["cameras"]}
    assert [row["status"] for row in rows.values()] == ["finished", "finished", "finished", "failed"]
    assert [rows[name]["attempt"] for name in ("yard", "gate", "door")] == [1, 2, 1]
    assert rows["yard"]["student"] is not None
    assert all(Path(rows[name]["model"]).is_file() for name in ("yard", "gate", "door"))

    # trained once: by the first camera, and taken over by the others
    for name, shared in (("yard", False), ("door", True)):
        lines = [json.loads(line) for line in (out / "cameras" / name / "metrics.jsonl").read_text().splitlines()]
        on_source = [line.get("shared", False) for line in lines if line["stage"] != "joint"]
        assert on_source == [shared] * 4  # two warm-ups of an epoch, the source-only reference of two
        assert not any(line.get("shared") for line in lines if line["stage"] == "joint")
    assert {folder.name.rpartition("-")[0] for folder in (out / ".shared").iterdir()} == {
        "student-warm-up", "teacher-warm-up", "source-only",
    }  # fmt: skip

    # the student of the killed camera is that of a run on its own, bit for bit
    alone, _, _ = requests(load_fleet(str(file)).run_recipe(load_fleet(str(file)).cameras["gate"], tmp_path))
    adapt(alone, tmp_path / "alone", Deaf())
    for role in ("student", "teacher", "source_only"):
        weights = f"{role}.safetensors"
        assert (out / "cameras" / "gate" / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()

    # without the failing camera there is nothing left to do, and nothing is done
    del fleet["cameras"]["gone"]
    file.write_text(yaml.safe_dump(fleet, sort_keys=False))
    before = {path: path.stat().st_mtime_ns for path in (out / "cameras").rglob("*") if path.is_file()}
    again = command("fleet", file, "--out", out, "--json")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in (out / "cameras").rglob("*") if path.is_file()} == before
    assert again.json["counts"] == {"finished": 3}
    status = command("fleet", "--status", "--state", out / "state", "--json")
    assert status.json == again.json
    fleet["set"] = {"distill.tau": 4}
    file.write_text(yaml.safe_dump(fleet, sort_keys=False))
    other = command("fleet", file, "--out", out)
    assert other.code == 2
    assert other.error.startswith("error: recipe: distill.tau: the camera 'yard' in ")
    assert "has 20.0, now 4.0 is asked for" in other.error
