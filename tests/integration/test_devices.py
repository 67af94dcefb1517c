"""Training on several devices: as many processes with gloo as one process, what dies, and how they are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Edgeda, Folders
from tests.ranks import DRIVER

NETWORK = {"backbone": "resnet10t", "pretrained": "none", "lr": 1e-4}  # slow: training amplifies rounding
TWO_CORES = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two devices need a machine with two CPU cores")


def values(folders: Folders, epochs: int, **sections: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "data": {"source": str(folders.source), "target": str(folders.target), "input_size": 32, "resize": "squash",
                 "crop_pct": 1.0},
        "teacher": NETWORK, "student": NETWORK, "adapt": {},
        "train": {"epochs": epochs, "batch_size": 12, "precision": "fp32", "threads": 1},
    }  # fmt: skip
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section} if isinstance(section, dict) else section
    return recipe


@TWO_CORES
def test_two_processes_have_the_losses_of_one(folders: Folders, environment: dict[str, str], tmp_path: Path):
    """Synchronized, frozen and per-domain BatchNorm; several optimizers; losses of whole batches and of their parts."""
    augment = {"augment": {"rotate": 10, "brightness": 0.2, "contrast": 0.2}}
    cases = {
        "synchronized": values(folders, 2),
        "frozen": values(folders, 2, adapt={"batchnorm": "frozen"}, train={"warmup_epochs": 1}),
        "adversarial": values(folders, 1, data=augment, distill={"end_to_end": True},
                              adapt={"batchnorm": "per-domain", "alignment": ["dann", "mdd", "mcc"]}),
        "adda": values(folders, 1, method="adda"),
        "cckdn": values(folders, 1, method="cckdn", cckdn={"critic": "wgan-gp", "width": 8}),
    }  # fmt: skip
    command = [sys.executable, "-c", DRIVER, json.dumps(cases), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in cases:
        alone, both = (
            [json.loads(line) for line in (tmp_path / f"{name}-{size}" / "metrics.jsonl").read_text().splitlines()]
            for size in (1, 2)
        )
        assert [line["stage"] for line in alone] == [line["stage"] for line in both]
        for one, two in zip(alone, both, strict=True):
            assert one["losses"] == pytest.approx(two["losses"], abs=1e-4), (name, one["stage"], one["epoch"])
    written = {path.name for path in (tmp_path / "synchronized-2").iterdir()}
    assert written == {path.name for path in (tmp_path / "synchronized-1").iterdir()}
    summary = json.loads((tmp_path / "synchronized-2" / "summary.json").read_text())
    assert summary["devices"] == 2


KILLED = """
import json, os, signal, subprocess, sys
from pathlib import Path
from edgeda.adapt import adapt
from edgeda.errors import WorkerLost
from edgeda.recipe import Recipe
from edgeda.watching import Deaf

recipe, out, started = Recipe.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]), []

class Started(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        started.append(self)

class Killer(Deaf):
    steps = 0
    def step(self, pairs):
        self.steps += 1
        if self.steps == 4:
            started[1].kill()

subprocess.Popen = Started
try:
    adapt(recipe, out, Killer())
except WorkerLost as error:
    assert "process 1 of 2 was killed (SIGKILL" in str(error), error
    assert f"edgeda adapt --out {out} --resume" in str(error), error
else:
    raise SystemExit("nobody noticed")
assert [process.poll() is not None for process in started] == [True, True]
assert adapt(recipe, out, Deaf(), resume=True)["devices"] == 2
"""


@TWO_CORES
def test_a_killed_worker_ends_the_run_which_goes_on_as_torchrun_would_have(
    folders: Folders, environment: dict[str, str], tmp_path: Path
):
    """Both ways of starting two processes, one of them killed and resumed: the same student, bit for bit."""
    torchrun = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgeda", "adapt",
        *folders.arguments[:4], *TINY, "--method", "uda", "--alignment", "dann", "--epochs", "1",
        "--set", "train.threads=1", "--set", "train.checkpoint_minutes=0", "--out", str(tmp_path / "whole"), "--json",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *torchrun], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["devices"] == 2  # one process speaks
    assert done.stderr.count("student adaptation: 1 epoch") == 1
    from edgeda.recipe_file import load_recipe

    recipe = load_recipe(str(tmp_path / "whole" / "recipe.yaml")).model_dump(mode="json")
    arguments = [json.dumps(recipe), str(tmp_path / "killed")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    whole, killed = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_more_devices_than_there_are(command: Edgeda, folders: Folders, tmp_path: Path):
    ran = command("adapt", *folders.arguments, *TINY, "--devices", 4000, "--out", tmp_path / "run")
    assert ran.code == 3
    assert f"this machine has {os.cpu_count()} CPU core" in ran.error
    assert not (tmp_path / "run").exists()


@TWO_CORES
def test_a_batch_that_devices_cannot_divide(command: Edgeda, folders: Folders, tmp_path: Path):
    ran = command("adapt", *folders.arguments, *TINY, "--devices", 2, "--batch-size", 9, "--out", tmp_path / "run")
    assert ran.code == 2
    assert "--batch-size 8 or 10" in ran.error
    assert not (tmp_path / "run").exists()


def test_torchrun_and_devices_disagree(
    command: Edgeda, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    ran = command("adapt", *folders.arguments, *TINY, "--devices", 3, "--out", tmp_path / "run")
    assert ran.code == 2
    assert "torchrun has started 2 processes, but train.devices is 3" in ran.error


@TWO_CORES
def test_wrong_input_is_said_once_by_all_workers(edgeda: Edgeda, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    where = ["--source", tmp_path / "empty", "--target", tmp_path / "empty", "--out", tmp_path / "run"]
    ran = edgeda("adapt", *where, *TINY, "--devices", 2)
    assert ran.code == 2
    assert str(tmp_path / "empty") in ran.error
    assert not (tmp_path / "run").exists()
