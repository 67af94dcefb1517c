"""ADDA: adversarial discriminative domain adaptation (Tzeng, Hoffman, Saenko, Darrell, CVPR 2017).

Stage 1 trains encoder and classifier on the source: that is the source-only reference of every run. Stage 2 fixes
both, and trains a target encoder, a copy at first, against a discriminator D of features:

    min over D of -E log D(M_source(x_source)) - E log(1 - D(M_target(x_target)))
    min over M_target of -E log D(M_target(x_target))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgeda.data.batches import Batch
from edgeda.losses.adversarial import domain_loss
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached, plain_network
from edgeda.methods.learner import descend
from edgeda.methods.source_only import reference_stage, warm_up_stages
from edgeda.recipe import Recipe


class Adda(Method):
    """The student is the target encoder under the source's classifier, which does not change."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop)
        recipe, student = workshop.recipe.adda, plain_network(workshop.networks["student"])
        self.discriminator = workshop.module(
            "discriminator of adda", lambda: discriminator(student.feature_width, recipe.hidden)
        )
        encoder = (parameter for name, parameter in student.named_parameters() if not name.startswith("head."))
        self.learners = {
            "student": workshop.adam("student", encoder, recipe.lr),
            "discriminator": workshop.adam("student", self.discriminator.parameters(), recipe.discriminator_lr),
        }

    def step(self, batch: Batch, progress: float) -> Terms:
        """The discriminator steps, then the target encoder against it."""
        with torch.no_grad():
            source = self.workshop.output("source_only", batch.source_images).features
        target = self.workshop.output("student", batch.target_images).features

        adversary = domain_loss(self.discriminator(source), self.discriminator(target.detach()))
        descend(adversary, progress, self.learners["discriminator"], terms={"discriminator": adversary})

        encoder = F.softplus(-self.discriminator(target).float()).mean()
        descend(encoder, progress, self.learners["student"], terms={"encoder": encoder})
        return detached({"discriminator": adversary, "encoder": encoder})


def discriminator(features: int, hidden: int) -> nn.Module:
    """Three fully connected layers with LeakyReLU, `(B, features)` to logits `(B, 1)`; 1 means source."""
    return nn.Sequential(
        nn.Linear(features, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
        nn.Linear(hidden, 1),
    )  # fmt: skip


def plan(recipe: Recipe) -> list[Stage]:
    """Target encoder against a critic (ADDA 2017).

    The encoder begins as the source-only student.
    """
    return [
        *warm_up_stages(recipe, "student"),
        reference_stage(recipe),
        Stage(
            "adda", recipe.train.epochs, Adda, ("student",), ("student",),
            adapts=True, starts_from={"student": "source_only", "source_only": "source_only"},
        ),
    ]  # fmt: skip
