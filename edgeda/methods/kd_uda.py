"""KD-UDA: joint progressive knowledge distillation and unsupervised domain adaptation.

Nguyen-Meidine, Granger, Kiran, Dolz, Blais-Morin, "Joint Progressive Knowledge Distillation and
Unsupervised Domain Adaptation", IJCNN 2020. Algorithm 1 and eqs. 1-7.
"""

from __future__ import annotations

import torch

from edgeda.data.batches import Batch
from edgeda.errors import InputError
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached
from edgeda.methods.distillation import distill
from edgeda.methods.learner import descend
from edgeda.methods.source_only import reference_stage, warm_up_stages
from edgeda.methods.uda import ADAPTERS
from edgeda.recipe import Recipe
from edgeda.schedules import beta


class KdUda(Method):
    """A teacher adapts to the target while the student learns from it, batch by batch.

    L = (1 - beta) L_TDA + beta (L_TKD + L_SKD)   (eq. 5), with beta growing from b to f (eqs. 6-7).
    The teacher receives gradients from L_TDA alone, the student from L_TKD + L_SKD alone.
    """

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop)
        self.recipe = workshop.recipe.distill
        self.adapter = ADAPTERS[workshop.recipe.adapt.technique](workshop, "teacher")
        self.student = workshop.learner("student")
        self.learners = {**self.adapter.learners, **self.adapter.adversaries, "student": self.student}

    def step(self, batch: Batch, progress: float) -> Terms:
        """Lines 3 to 8 of Algorithm 1, or one step on eq. 5 (section IV-C)."""
        weight = beta(progress, *self.recipe.beta)

        adaptation, terms, teacher_source, teacher_target = self.adapter.adapt(batch, progress)
        if self.recipe.end_to_end:
            distillation, more = distill(self.workshop, batch, teacher_source, teacher_target)
            loss = (1 - weight) * adaptation + weight * distillation
            descend(loss, progress, *self.adapter.learners.values(), self.student, terms=terms | more)
            return detached(terms | more)

        descend((1 - weight) * adaptation, progress, *self.adapter.learners.values(), terms=terms)
        if self.recipe.recompute_teacher:
            with torch.no_grad():
                teacher_source, teacher_target = self.workshop.forward("teacher", batch)
        distillation, more = distill(self.workshop, batch, teacher_source, teacher_target)
        descend(weight * distillation, progress, self.student, terms=more)
        return detached(terms | more)


def plan(recipe: Recipe) -> list[Stage]:
    """Joint progressive KD and UDA (the paper).

    Warm-ups, the source-only reference, then the teacher adapts while the student learns from it.
    """
    adapter = ADAPTERS[recipe.adapt.technique]
    if not adapter.aligns and (recipe.distill.end_to_end or not recipe.distill.recompute_teacher):
        raise InputError(
            f"adapt.technique {recipe.adapt.technique} does not compute the teacher's target outputs itself: "
            "leave distill.recompute_teacher true and distill.end_to_end false"
        )
    both = ("teacher", "student")
    return [
        *warm_up_stages(recipe, "student", "teacher"),
        reference_stage(recipe),
        *adapter.preparation(recipe),
        Stage("joint", recipe.train.epochs, KdUda, both, both, adapts=True, aligns=adapter.aligns),
    ]
