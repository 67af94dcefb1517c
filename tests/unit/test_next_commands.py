"""What to type after training: commands that this very command line takes, and that mean the right run."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from edgeda.artifacts import as_argument
from edgeda.report.summary import summary_text

CLASSES = ["cat", "dog"]


def finished(run: Path, ship: str = "adapted", right: float = 90.0, age_s: float = 0.0) -> dict:
    networks = {role: {"target": {"last": right, "selected": right, "oracle": right}, "source": 95.0} for role in (
        "student", "source_only")}  # fmt: skip
    summary = {
        "run": str(run), "method": "kd-uda", "student": "resnet18", "teacher": None, "classes": CLASSES, "epochs": 3,
        "accuracy": networks, "complexity": {}, "selection": {"rule": "im", "epoch": 3}, "wall_s": 1.0,
        "accuracy_source_images": "held out", "pairs_per_s": 1.0, "precision": "fp32", "peak_memory_mb": 100.0,
        "verdict": {"ship": ship, "reason": "because", "evidence": {}},
    }  # fmt: skip
    run.mkdir(parents=True)
    path = run / "summary.json"
    path.write_text(json.dumps(summary))
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    return summary


def commands(text: str) -> list[list[str]]:
    lines = text.split("\n\n")[-1].splitlines()
    return [shlex.split(line.partition(": ")[2]) for line in lines]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_newest_run_needs_no_name() -> None:
    old, new = finished(Path("runs/old"), age_s=60), finished(Path("runs/new"))
    assert commands(summary_text(new)) == [
        ["edgeda", "export", "--precision", "int8", "--for", "x86"],
        ["edgeda", "export", "--trt"],
        ["edgeda", "compare"],
    ]
    assert [command[2] for command in commands(summary_text(old))] == ["runs/old"] * 3
    assert as_argument(Path("runs/new").absolute()) == ""


def test_a_run_elsewhere_is_named_as_a_shell_takes_it() -> None:
    finished(Path("runs/new"))
    elsewhere = finished(Path("my runs/a'b"))
    assert [command[2] for command in commands(summary_text(elsewhere))] == ["my runs/a'b"] * 3


def test_the_student_of_the_verdict_is_exported() -> None:
    for command in commands(summary_text(finished(Path("runs/new"), "source-only")))[:2]:
        assert command[-2:] == ["--role", "source_only"]


def test_a_student_that_guesses_is_trained_longer_before_it_is_exported() -> None:
    text = summary_text(finished(Path("runs/new"), right=52.0))
    assert "verdict: not ready to ship" in text
    assert commands(text) == [
        ["edgeda", "adapt", "--recipe", "runs/new/recipe.yaml", "--epochs", "12"], ["edgeda", "compare"]
    ]  # fmt: skip


def test_a_pruned_student_that_guesses_is_trained_longer_as_it_is_now() -> None:
    """Its recipe would prune the run it came from again."""
    run = finished(Path("runs/small"), right=52.0)
    run |= {"method": "tcp", "started_from": "new", "target": "my cameras/gate", "target_test": None}
    go_on = ["edgeda", "adapt", "--from", "runs/small", "--target", "my cameras/gate", "--epochs", "12"]
    assert commands(summary_text(run))[0] == go_on
    labelled = commands(summary_text(run | {"target_test": "labelled"}))[0]
    assert labelled == [*go_on[:-2], "--target-test", "labelled", *go_on[-2:]]
