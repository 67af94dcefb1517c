"""KD-UDA: joint progressive knowledge distillation and unsupervised domain adaptation.

Nguyen-Meidine, Granger, Kiran, Dolz, Blais-Morin, "Joint Progressive Knowledge Distillation and
Unsupervised Domain Adaptation", IJCNN 2020. Algorithm 1 and eqs. 1-7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgeda.data.batches import Batch
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached
from edgeda.methods.distillation import DISTILLATIONS
from edgeda.methods.source_only import reference_stage, warm_up_stages
from edgeda.models import Output
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
        self.adaptation = workshop.adaptation("teacher")
        self.modules = {"adaptation": self.adaptation}
        if self.recipe.end_to_end:
            self.learners = {"joint": workshop.learner("teacher", "student", extra=self.adaptation)}
        else:
            self.learners = {
                "teacher": workshop.learner("teacher", extra=self.adaptation),
                "student": workshop.learner("student"),
            }

    def step(self, batch: Batch, progress: float) -> Terms:
        """Lines 3 to 8 of Algorithm 1, or one step on eq. 5 (section IV-C)."""
        weight = beta(progress, *self.recipe.beta)

        teacher_source, teacher_target = self.workshop.forward("teacher", batch)
        adaptation, terms = self.adaptation(teacher_source, teacher_target, batch.source_labels, progress)
        if self.recipe.end_to_end:
            distillation = self.distill(batch, teacher_source, teacher_target, terms)
            self.learners["joint"].descend((1 - weight) * adaptation + weight * distillation, progress)
            return detached(terms)

        self.learners["teacher"].descend((1 - weight) * adaptation, progress)
        if self.recipe.recompute_teacher:
            with torch.no_grad():
                teacher_source, teacher_target = self.workshop.forward("teacher", batch)
        distillation = self.distill(batch, teacher_source, teacher_target, terms)
        self.learners["student"].descend(weight * distillation, progress)
        return detached(terms)

    def distill(self, batch: Batch, teacher_source: Output, teacher_target: Output, terms: Terms) -> torch.Tensor:
        """L_TKD + L_SKD (eqs. 3-4); the terms are added to `terms`."""
        distillation = DISTILLATIONS[self.recipe.loss]
        student_source, student_target = self.workshop.forward("student", batch)
        terms["target_kd"] = distillation(student_target, teacher_target, None, self.recipe)
        terms["source_kd"] = distillation(student_source, teacher_source, batch.source_labels, self.recipe)
        terms["student_cross_entropy"] = F.cross_entropy(student_source.logits, batch.source_labels)
        return terms["target_kd"] + terms["source_kd"] + self.recipe.alpha * terms["student_cross_entropy"]


def plan(recipe: Recipe) -> list[Stage]:
    """A source warm-up of both networks if the recipe has one, the source-only reference, the joint stage."""
    return [
        *warm_up_stages(recipe, "student", "teacher"),
        reference_stage(recipe),
        Stage("joint", recipe.train.epochs, ("teacher", "student"), KdUda, adapts=True),
    ]
