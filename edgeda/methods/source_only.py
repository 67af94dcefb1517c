"""Source-only: cross-entropy on labelled source images; the baseline, and the warm-up of a new teacher."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.nn.functional as F

from edgeda.data.batches import Batch
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached
from edgeda.methods.learner import descend
from edgeda.recipe import Recipe


class SourceOnly(Method):
    """Train the network of one role on the source."""

    def __init__(self, workshop: Workshop, role: str) -> None:
        super().__init__(workshop)
        self.role = role
        self.learners = {role: workshop.learner(role)}

    def step(self, batch: Batch, progress: float) -> Terms:
        """L_CE(N(x_source), y_source)."""
        output = self.workshop.output(self.role, batch.source_images)
        loss = F.cross_entropy(output.logits, batch.source_labels)
        descend(loss, progress, self.learners[self.role], terms={"cross_entropy": loss})
        return detached({"cross_entropy": loss})


def warm_up_stages(recipe: Recipe, *roles: str) -> list[Stage]:
    """Source-only training that a run begins with; it is not scored."""
    return [source_stage(f"{role} warm-up", recipe.train.warmup_epochs, role) for role in roles]


def source_stage(name: str, epochs: int, role: str, scores: tuple[str, ...] = ()) -> Stage:
    """Source-only training of a network that goes on to something else."""
    return Stage(name, epochs, partial(SourceOnly, role=role), (role,), scores, reads=(role,))


def reference_stage(recipe: Recipe) -> Stage:
    """The source-only student every run is compared with.

    It starts from the student's weights as they are then (after the student's warm-up, if there is one)
    and trains as long, on the same schedule and augmentation, as the method's own main stage.
    """
    return Stage(
        "source-only", recipe.train.epochs, partial(SourceOnly, role="source_only"),
        trains=("source_only",), scores=("source_only",), starts_from={"source_only": "student"}, reads=("student",),
    )  # fmt: skip


def unchanged_reference(student: Path) -> Stage:
    """A student of an earlier run as it is, in the place of the source-only one."""
    build = partial(SourceOnly, role="source_only")
    return Stage("source-only", 0, build, scores=("source_only",), starts_from={"source_only": student})


def plan(recipe: Recipe) -> list[Stage]:
    """No adaptation: the labelled source alone."""
    return [*warm_up_stages(recipe, "student"), reference_stage(recipe)]
