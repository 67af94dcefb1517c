"""Runs killed with SIGKILL at random steps, and gone on with: the student is the same, bit for bit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Folders

DRIVER = """
import json, os, signal, sys
from pathlib import Path
import torch
from edgeda.adapt import adapt
from edgeda.recipe_file import load_recipe

values, out, kills = json.loads(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])

class Watcher:
    def __init__(self, left):
        self.left = left
    def stage(self, *_): pass
    def epoch(self, record): pass
    def step(self, pairs):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def run(folder, left, resume, minutes):
    pid = os.fork()  # torch is imported once; every run is a process of its own
    if not pid:
        try:
            recipe = load_recipe(None, {**values, "train.checkpoint_minutes": minutes})
            adapt(recipe, folder, Watcher(left), resume=resume)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert run(out / "whole", -1, False, 1000) == 0
for index, steps in enumerate(kills):
    assert os.WTERMSIG(run(out / "killed", steps, index > 0, 0)) == signal.SIGKILL
assert run(out / "killed", -1, True, 0) == 0
"""


@pytest.mark.parametrize(
    ("method", "alignment", "precision"),
    [("kd-uda", "mmd", "fp32"), ("uda", "cdan", "fp32"), ("kd-uda", "dann", "bf16")],
)
def test_a_run_killed_at_random_steps_ends_with_the_same_student(
    folders: Folders,
    environment: dict[str, str],
    tmp_path: Path,
    method: str,
    alignment: str,
    precision: str,
):
    network = {"backbone": "test_resnet", "pretrained": "none", "bottleneck": 16}
    values = {
        "data.source": str(folders.source), "data.target": str(folders.target), "data.input_size": 32,
        "data.resize": "squash", "data.crop_pct": 1.0, "data.augment.rotate": 5, "teacher": network,
        "student": network, "method": method, "adapt.alignment": [alignment], "train.warmup_epochs": 1,
        "train.epochs": 2, "train.batch_size": 12, "train.precision": precision, "train.threads": 1,
    }  # fmt: skip
    # 36 source images: 3 steps an epoch; kd-uda has 3 + 6 + 3 + 6 of them, uda 3 + 6 + 6
    chosen = random.Random(f"{method} {alignment} {precision}")  # the same steps in every run of the tests
    kills = [chosen.randint(1, 9), chosen.randint(1, 5)]
    command = [sys.executable, "-c", DRIVER, json.dumps(values), str(tmp_path), json.dumps(kills)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, (kills, done.stderr)
    whole, killed = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed, f"killed after {kills[0]} steps, then after {kills[1]}"
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    losses = [[json.loads(line)["losses"] for line in part] for part in lines]
    assert losses[0] == losses[1]
