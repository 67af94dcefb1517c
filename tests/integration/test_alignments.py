"""Alignments with networks of their own, inside a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeda.adapt import adapt, adapt_recipe
from edgeda.recipe import Recipe
from edgeda.train import Record
from tests.conftest import TINY, Folders


class Watcher:
    """Stops the process, as far as the run can tell, at a step of its last stage."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.name, self.steps = stop_at, "", 0

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        self.name, self.steps = name, done

    def step(self, pairs: int) -> None:
        self.steps += 1
        if self.name == "joint" and self.steps == self.stop_at:
            raise KeyboardInterrupt

    def epoch(self, record: Record) -> None:
        pass


def recipe(folders: Folders, **values: object) -> Recipe:
    tiny = [word for word in TINY if "=" in word]
    options = {
        "data.source": str(folders.source), "data.target": str(folders.target), "train.precision": "fp32",
        "train.batch_size": 16, "train.epochs": 1, "train.threads": 1, **values,
    }  # fmt: skip
    return adapt_recipe(None, options, tiny, None, False)


def test_a_run_with_heads_and_dropout_resumes_to_the_same_student(folders: Folders, tmp_path: Path):
    """Building the heads anew draws random numbers, which must not shift those that the run goes on with."""
    chosen = {"adapt.alignment": ["mdd", "cdan+e"], "distill.loss": "dkd", "train.warmup_epochs": 0}
    adapt(recipe(folders, **chosen), tmp_path / "whole", Watcher())
    often = recipe(folders, **chosen, **{"train.checkpoint_minutes": 0})
    with pytest.raises(KeyboardInterrupt):
        adapt(often, tmp_path / "killed", Watcher(stop_at=2))
    adapt(often, tmp_path / "killed", Watcher(), resume=True)
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert students[0] == students[1]
    losses = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])["losses"]
    assert set(losses) == {
        "mdd", "cdan+e", "cross_entropy", "target_kd", "source_kd", "student_cross_entropy"
    }  # fmt: skip
