"""TCP: transfer channel pruning, the baseline that makes one network small instead of teaching a small one.

Yu, Wang, Chen, Wu, "Accelerating Deep Unsupervised Domain Adaptation with Transfer Channel Pruning", IJCNN
2019. The criterion is in `edgeda.pruning`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeda.artifacts import RECIPE, RunDirectory
from edgeda.channels import narrow_optimizer_state
from edgeda.data.batches import Batch
from edgeda.errors import InputError, did_you_mean
from edgeda.methods.adapter import AlignmentAdapter
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached, plain_network
from edgeda.methods.source_only import reference_stage, unchanged_reference, warm_up_stages
from edgeda.methods.uda import Uda, adaptation_stages
from edgeda.models import Network, Output
from edgeda.profiling.complexity import torch_complexity
from edgeda.pruning import ChannelScores, check_target, prunable, prune_to
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe, parse_set

log = logging.getLogger(__name__)

ROLES = ("student", "teacher")
"""Whose weights of an earlier run can be pruned."""
ADAPTED = 1.0
"""Progress of the adaptation: the network is adapted already, so its alignments keep their full weight."""


class Prune(Uda):
    """Rounds of scoring channels, removing the lowest and fine-tuning what is left.

    A round is an epoch whose first batches score instead of training (`prune.score_steps`; all of them by
    default), then `prune.round_epochs` of fine-tuning on a learning rate schedule of its own.
    """

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop, "student", "alignment", ADAPTED)
        assert isinstance(self.adapter, AlignmentAdapter)
        self.adaptation = self.adapter.adaptation
        self.recipe = workshop.recipe.prune
        self.network = plain_network(workshop.networks["student"])
        self.found = prunable(self.network)
        self.dense_gmacs = torch_complexity(self.network, workshop.recipe.data.input_size).gmacs
        self.round, self.scored = 0, 0
        self.pruned_at: float | None = None
        """How far the round was when channels went, in [0, 1); None: it still scores."""
        self.scores = ChannelScores(self.network, self.found, self.workshop.group)

    def step(self, batch: Batch, progress: float) -> Terms:
        """Score a batch, or prune if the scores are complete and train on it."""
        at = progress * self.recipe.iterations + 1e-9  # the start of a round, whatever the rounding
        within = at - int(at)
        if int(at) + 1 > self.round:
            self.round, self.scored, self.pruned_at = int(at) + 1, 0, None
            self.scores = ChannelScores(self.network, self.found, self.workshop.group)
        if self.pruned_at is None:
            in_first_epoch = within < 1 / (1 + self.recipe.round_epochs)
            if in_first_epoch and (not self.recipe.score_steps or self.scored < self.recipe.score_steps):
                return self.score(batch)
            self.prune()
            self.pruned_at = within
        return super().step(batch, (within - self.pruned_at) / (1 - self.pruned_at))

    def score(self, batch: Batch) -> Terms:
        """Add a batch to the scores; no parameter moves."""
        self.scored += 1
        plain = replace(self.workshop, networks={"student": self.network})
        with self.scores.recording():
            with self.workshop.fabric.autocast():
                source, target = (_float(output) for output in plain.forward("student", batch))
            loss, terms = self.adaptation(source, target, batch.source_labels, ADAPTED)
            self.scores.add(loss, len(batch.source_images))
        return detached(terms)

    def prune(self) -> None:
        """Remove channels up to the round's target: the cut grows evenly, or by `prune.channels` a round."""
        recipe, last = self.recipe, self.round == self.recipe.iterations
        share = self.round / recipe.iterations if not recipe.channels else 1.0
        pruned = prune_to(
            self.network,
            self.scores.scores(),
            self.dense_gmacs * (1 - recipe.macs_cut * share),
            self.workshop.recipe.data.input_size,
            recipe.minimum,
            recipe.channels if recipe.channels and not last else None,
        )
        for learner in self.adapter.learners.values():
            narrow_optimizer_state(learner.optimizer.optimizer, self.network, self.found, pruned.kept)
        log.info(
            "pruning round %d of %d: %d channels removed, %.4g of %.4g GMACs left",
            self.round, recipe.iterations, pruned.removed, pruned.gmacs, self.dense_gmacs,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Optimizers, and where in which round it is, with the scores so far."""
        return {
            "learners": super().state(),
            "dense_gmacs": self.dense_gmacs,
            "round": self.round,
            "scored": self.scored,
            "pruned_at": self.pruned_at,
            "scores": self.scores.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, on a network that has its shapes already."""
        super().load_state(state["learners"])
        self.dense_gmacs = state["dense_gmacs"]
        self.round, self.scored, self.pruned_at = state["round"], state["scored"], state["pruned_at"]
        if self.pruned_at is None:
            self.scores.load_state(state["scores"])


def _float(output: Output) -> Output:
    return Output(output.features.float(), output.logits.float())


def plan(recipe: Recipe) -> list[Stage]:
    """Student adapts, then is pruned (TCP 2019).

    Of an earlier run (`prune.run`), what it adapted is pruned, and its source-only student is the reference.
    """
    origin: str | Path = "student"
    if recipe.prune.run is None:
        adapted = [*warm_up_stages(recipe, "student"), reference_stage(recipe)]
        adapted += adaptation_stages(recipe, "student", "alignment")
    else:
        run = RunDirectory(Path(recipe.prune.run))
        origin = run.weights(recipe.prune.role)
        adapted = [unchanged_reference(run.weights("source_only"))]
    rounds = recipe.prune.iterations * (1 + recipe.prune.round_epochs)
    return [
        *adapted,
        Stage(
            "tcp pruning",
            rounds,
            Prune,
            ("student",),
            adapts=True,
            aligns=True,
            starts_from={"student": origin},
            check=_check,
        ),
        Stage("tcp fine-tuning", recipe.train.epochs, _fine_tune, ("student",), ("student",), adapts=True, aligns=True),
    ]


def _fine_tune(workshop: Workshop) -> Method:
    """Further adaptation, with gamma as at its end."""
    return Uda(workshop, "student", "alignment", ADAPTED)


def _check(workshop: Workshop) -> None:
    check_pruning(workshop.recipe, plain_network(workshop.networks["student"]))


def check_pruning(recipe: Recipe, student: Network) -> None:
    """InputError when the student cannot be pruned as far as the recipe asks."""
    check_target(student, recipe.prune.macs_cut, recipe.data.input_size, recipe.prune.minimum)


def prune_recipe(
    run: RunDirectory, role: str, options: dict[str, Any], pairs: list[str], out: Path | None = None
) -> Recipe:
    """The recipe that prunes the network of `role` of a finished run: the run's own, then options, then --set pairs.

    InputError for a run that has no such network, or that `out` would replace.
    """
    if role not in ROLES:
        raise InputError(f"--role {role}{did_you_mean(role, ROLES)}")
    run.summary()
    if out is not None and out.resolve() == run.path.resolve():
        raise InputError(f"--out {out} is the run that is pruned; choose another folder")
    if not run.weights(role).is_file():
        raise InputError(f"the run {run.path} has no {role}; it has no {run.weights(role).name}")
    saved = load_recipe(str(run.path / RECIPE))
    part = saved.teacher if role == "teacher" else saved.student
    start = {
        "name": f"{saved.name.removesuffix('-pruned')}-pruned",
        "method": "tcp",
        "student": {**part.model_dump(mode="json"), "pretrained": "none"},
        "prune.run": str(run.path),
        "prune.role": role,
        "train.warmup_epochs": 0,
    }
    return load_recipe(str(run.path / RECIPE), {**start, **options, **parse_set(pairs)})
