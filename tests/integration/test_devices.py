"""Training on several devices: as many processes with gloo as one process, what dies, and how they are started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgeda.adapt
from edgeda.adapt import adapt, adapt_recipe
from edgeda.checkpoint import load_checkpoint
from edgeda.distributed import launch
from edgeda.errors import InputError, Interrupted, WorkerLost, WrongKey
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.watching import Deaf
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
        "frozen": values(folders, 2, adapt={"batchnorm": "frozen"}),
        "per-domain": values(folders, 1, data=augment, distill={"end_to_end": True},
                             adapt={"batchnorm": "per-domain", "alignment": ["dann", "mdd", "mcc"]}),
        "cckdn": values(folders, 1, method="cckdn", cckdn={"critic": "wgan-gp", "width": 8, "lr": 2e-5}),
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


class KillsAWorker(Deaf):
    """Keeps the processes that are started, and kills the second in the middle of a run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.left, popen = after, subprocess.Popen

        def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            self.started.append(popen(*arguments, **options))
            return self.started[-1]

        monkeypatch.setattr(launch.subprocess, "Popen", start)

    def step(self, pairs: int) -> None:
        self.left -= 1
        if not self.left:
            self.started[1].kill()


@TWO_CORES
def test_a_killed_worker_ends_the_run_which_goes_on_as_torchrun_would_have(
    folders: Folders, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both ways of starting two processes, one of them killed and resumed: the same student, bit for bit."""
    torchrun = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgeda", "adapt",
        *folders.arguments[:4], *TINY, "--method", "uda", "--alignment", "dann", "--epochs", "1", "--batch-size", "12",
        "--set", "train.warmup_epochs=0", "--set", "train.threads=1", "--set", "train.checkpoint_minutes=0",
        "--out", str(tmp_path / "whole"), "--json",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *torchrun], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["devices"] == 2  # one process speaks
    assert done.stderr.count("student adaptation: 1 epoch") == 1
    recipe, killed = load_recipe(str(tmp_path / "whole" / "recipe.yaml")), tmp_path / "killed"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    killer = KillsAWorker(monkeypatch, after=4)
    with pytest.raises(WorkerLost) as lost:
        adapt(recipe, killed, killer)
    assert "process 1 of 2 was killed (SIGKILL" in str(lost.value)
    assert f"edgeda adapt --out {killed} --resume" in str(lost.value)
    assert None not in [process.poll() for process in killer.started]
    assert adapt(recipe, killed, Deaf(), resume=True)["devices"] == 2
    assert (tmp_path / "whole" / "student.safetensors").read_bytes() == (killed / "student.safetensors").read_bytes()
    assert adapt(recipe, killed, Deaf(), resume=True)["devices"] == 2  # finished: nothing is started
    assert len(killer.started) == 4


class Stops(Deaf):
    """Asks for the run to be stopped as Ctrl-C does, after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, pairs: int) -> None:
        self.left -= 1
        handler = signal.getsignal(signal.SIGINT)
        if not self.left and callable(handler):
            handler(signal.SIGINT, None)


@TWO_CORES
def test_a_run_that_is_stopped_is_saved_however_slow_the_disk(
    folders: Folders, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first process writes for longer than the launcher waits for it once another one has left."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    slow = (
        "import time, edgeda.checkpoint as c; write = c._write; "
        f"c._write = lambda *a: (time.sleep({launch.SETTLE_S + 1}), write(*a)); "
    )
    monkeypatch.setattr(launch, "BOOT", launch.BOOT.replace("from edgeda", f"{slow}from edgeda"))
    recipe = Recipe.model_validate(values(folders, 3, method="source-only", train={"devices": 2, "warmup_epochs": 0}))
    with pytest.raises(Interrupted, match=r"stopped; go on with: edgeda adapt --out .*run --resume"):
        adapt(recipe, tmp_path / "run", Stops(after=2))
    state = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert state is not None
    assert state["position"][1] >= 2


@TWO_CORES
def test_a_run_on_devices_goes_on_with_the_recipe_it_was_started_with(
    folders: Folders, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A process of two has half the threads: that is the run's, whatever one process alone would take."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked = values(folders, 1, method="source-only", train={"devices": 2, "warmup_epochs": 0, "threads": 0})
    (tmp_path / "recipe.yaml").write_text(json.dumps(asked))
    recipe, run = adapt_recipe(str(tmp_path / "recipe.yaml"), {}, [], tmp_path / "run", False), tmp_path / "run"
    with pytest.raises(Interrupted):
        adapt(recipe, run, Stops(after=2))
    monkeypatch.setattr(edgeda.adapt, "threads_here", lambda: 7)
    again = adapt_recipe(str(tmp_path / "recipe.yaml"), {}, [], run, True)
    assert again.train.threads == load_recipe(str(run / "recipe.yaml")).train.threads
    with pytest.raises(WrongKey, match=r"train\.threads.* now 7 is asked for"):
        adapt_recipe(str(tmp_path / "recipe.yaml"), {"train.threads": 7}, [], run, True)


def test_a_worker_that_is_not_understood_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    said = "import os, sys; os.write(int(sys.argv[2]), bytes([255, 10])); sys.stdin.read()"
    monkeypatch.setattr(launch, "BOOT", said)
    with pytest.raises(WorkerLost, match=r"process [01] of 2 is no longer understood .*; go on with: edgeda adapt"):
        launch.run_workers({"out": str(tmp_path / "run")}, 2, Deaf())
    assert capfd.readouterr().err == ""


def test_a_workers_error_reaches_the_user_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    failed = {"kind": "WrongKey", "message": "recipe: train.threads: is 1, now 2 is asked for", "traceback": "its own"}
    line = json.dumps({"failed": failed}).encode() + b"\n"
    said = f"import os, sys; os.write(int(sys.argv[2]), {line!r})"
    monkeypatch.setattr(launch, "BOOT", said)
    with pytest.raises(InputError, match=r"^recipe: train\.threads: is 1, now 2 is asked for$") as error:
        launch.run_workers({"out": str(tmp_path / "run")}, 2, Deaf())
    assert str(error.value.__cause__) == "its own"


def test_a_worker_whose_launcher_is_gone_ends_without_a_word():
    hears, tells = os.pipe()
    os.close(hears)
    command = [sys.executable, "-c", launch.BOOT, json.dumps(sys.path), str(tells)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, pass_fds=(tells,)) as worker:
        os.close(tells)
        assert worker.stdin is not None
        assert worker.stderr is not None
        worker.stdin.write(b"{}\n")  # no job: it fails, and nobody hears that
        worker.stdin.flush()
        assert (worker.stderr.read(), worker.wait(60)) == (b"", 1)


def test_more_devices_than_there_are(command: Edgeda, folders: Folders, tmp_path: Path):
    ran = command("adapt", *folders.arguments, *TINY, "--devices", 4000, "--out", tmp_path / "run")
    assert ran.code == 3
    assert f"this machine has {os.cpu_count()} CPU core" in ran.error
    assert not (tmp_path / "run").exists()


@TWO_CORES
@pytest.mark.parametrize(("size", "near"), [(3, "2 or 4"), (9, "8 or 10")])
def test_a_batch_that_devices_cannot_divide(command: Edgeda, folders: Folders, tmp_path: Path, size: int, near: str):
    ran = command("adapt", *folders.arguments, *TINY, "--devices", 2, "--batch-size", size, "--out", tmp_path / "run")
    assert ran.code == 2
    assert ran.error.endswith(f"give --batch-size {near}")
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
def test_wrong_input_is_said_once_by_all_workers(command: Edgeda, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    where = ["--source", tmp_path / "empty", "--target", tmp_path / "empty", "--out", tmp_path / "run"]
    ran = command("adapt", *where, *TINY, "--devices", 2)
    assert ran.code == 2
    assert str(tmp_path / "empty") in ran.error
    assert not (tmp_path / "run").exists()
