"""Source-only: cross-entropy on labelled source images; the baseline, and the warm-up of a new teacher."""

from __future__ import annotations

import torch.nn.functional as F

from edgeda.data.batches import Batch
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached
from edgeda.recipe import Recipe


class SourceOnly(Method):
    """Train the network of one role on the source."""

    def __init__(self, workshop: Workshop, role: str) -> None:
        super().__init__(workshop)
        self.role = role
        self.learners = {role: workshop.learner(role)}

    def step(self, batch: Batch, progress: float) -> Terms:
        """L_CE(N(x_source), y_source)."""
        output = self.workshop.networks[self.role](batch.source_images)
        loss = F.cross_entropy(output.logits, batch.source_labels)
        self.learners[self.role].descend(loss, progress)
        return detached({"cross_entropy": loss})


def source_only_stage(role: str, name: str, epochs: int, scored: bool = True) -> Stage:
    """A stage of source-only training for one role."""
    return Stage(name, epochs, (role,), lambda workshop: SourceOnly(workshop, role), scored)


def plan(recipe: Recipe) -> list[Stage]:
    """Nothing beside the source-only student that every run trains."""
    return []
