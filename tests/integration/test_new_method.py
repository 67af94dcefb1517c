"""Methods as somebody new would write them: what the loop gives each of their stages, and resuming them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from edgeda.adapt import adapt
from edgeda.data.batches import Batch
from edgeda.distributed.batchnorm import batchnorm_layers
from edgeda.methods import METHODS
from edgeda.methods.adapter import Adapted, Adapter
from edgeda.methods.base import Stage, Terms, Workshop, plain_network
from edgeda.methods.source_only import SourceOnly, reference_stage, source_stage
from edgeda.methods.uda import ADAPTERS
from edgeda.recipe import Recipe
from tests.conftest import Folders
from tests.integration.test_runs import Watcher, recipe


class MeanTeacher(Adapter):
    """Cross-entropy on the source, and the target as a moving average of the network sees it."""

    begun: list[bool]
    """Whether the average began as the network was then, each time that one was made."""

    def __init__(self, workshop: Workshop, role: str) -> None:
        super().__init__(workshop, role)
        self.network = plain_network(workshop.networks[role])
        self.average = workshop.module(f"average of {role}", lambda: copy.deepcopy(self.network))
        self.learners = {role: workshop.learner(role)}
        pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
        self.begun.append(all(torch.equal(mine, theirs) for mine, theirs in pairs))

    def adapt(self, batch: Batch, progress: float) -> Adapted:
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
            wanted = self.workshop.whole(self.average(batch.target_images)).logits.softmax(dim=1)
        source, target = self.workshop.forward(self.role, batch)
        terms = {
            "consistency": (target.logits.softmax(dim=1) - wanted).square().mean(),
            "cross_entropy": torch.nn.functional.cross_entropy(source.logits, batch.source_labels),
        }
        return Adapted(terms["consistency"] + terms["cross_entropy"], terms, source, target)


@pytest.mark.parametrize(("method", "stage"), [("uda", "student adaptation"), ("kd-uda", "joint")])
def test_a_network_beside_a_role_begins_when_its_stage_does_and_resumes(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stage: str
):
    """It copies what the warm-up has left; the checkpoint holds it, so that a resumed run does not copy it again."""
    monkeypatch.setitem(ADAPTERS, "mean-teacher", MeanTeacher)
    chosen = {"method": method, "adapt.technique": "mean-teacher", "train.checkpoint_minutes": 0, "train.epochs": 2}
    monkeypatch.setattr(MeanTeacher, "begun", [], raising=False)
    adapt(recipe(folders, **chosen), tmp_path / "whole", Watcher())
    assert MeanTeacher.begun == [True, True], "once to see whether it can be built, once in its turn"
    with pytest.raises(KeyboardInterrupt):
        adapt(recipe(folders, **chosen), tmp_path / "killed", Watcher(stage, 3))
    adapt(recipe(folders, **chosen), tmp_path / "killed", Watcher(), resume=True)
    assert MeanTeacher.begun[-1] is False
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert students[0] == students[1]


def test_frozen_statistics_are_free_again_in_a_stage_that_does_not_adapt(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where no evaluation lies between the two stages."""
    seen: dict[str, set[bool]] = {}

    class Noting(SourceOnly):
        def __init__(self, workshop: Workshop, stage: str) -> None:
            super().__init__(workshop, "student")
            self.stage = stage

        def step(self, batch: Batch, progress: float) -> Terms:
            modes = {layer.training for layer in batchnorm_layers(self.workshop.networks["student"])}
            seen.setdefault(self.stage, set()).update(modes)
            return super().step(batch, progress)

    def plan(recipe: Recipe) -> list[Stage]:
        adapting, after = (
            Stage(name, 1, lambda workshop, name=name: Noting(workshop, name), ("student",), adapts=name == "adapting")
            for name in ("adapting", "after")
        )
        last = source_stage("scored", 1, "student", scores=("student",))
        return [adapting, after, last, reference_stage(recipe)]

    monkeypatch.setitem(METHODS, "noting", plan)
    adapt(recipe(folders, method="noting", **{"adapt.batchnorm": "frozen"}), tmp_path / "run", Watcher())
    assert seen == {"adapting": {False}, "after": {True}}
