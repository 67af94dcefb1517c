"""What a student may learn from a teacher by: the losses that `distill.loss` names, one line each in DISTILLATIONS."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.data.batches import Batch
from edgeda.losses.distillation import (
    decoupled_distillation,
    distillation_ce,
    distillation_kl,
    distillation_mse,
    similarity_distillation,
)
from edgeda.methods.base import Method, Terms, Workshop, detached
from edgeda.methods.learner import descend
from edgeda.outputs import Output
from edgeda.recipe import DistillRecipe

SIMILARITY_WEIGHT = 3000.0
"""Of `similarity_distillation`, as in its paper; its values are small."""

Distillation = Callable[[Output, Output, Tensor | None, DistillRecipe], Tensor]
"""A scalar of the student's output, the teacher's, the labels `(B,)` (None for target images) and the recipe."""


def kl(student: Output, teacher: Output, labels: Tensor | None, recipe: DistillRecipe) -> Tensor:
    """tau**2 KL(teacher || student): the default."""
    return distillation_kl(student.logits, teacher.logits, recipe.tau)


def mse(student: Output, teacher: Output, labels: Tensor | None, recipe: DistillRecipe) -> Tensor:
    """tau**2 times the squared distance of softened outputs."""
    return distillation_mse(student.logits, teacher.logits, recipe.tau)


def ce(student: Output, teacher: Output, labels: Tensor | None, recipe: DistillRecipe) -> Tensor:
    """tau**2 times the cross-entropy of softened outputs: the gradient of `kl`, another value."""
    return distillation_ce(student.logits, teacher.logits, recipe.tau)


def dkd(student: Output, teacher: Output, labels: Tensor | None, recipe: DistillRecipe) -> Tensor:
    """Decoupled distillation. Target images have no labels: the class the teacher predicts stands in for theirs."""
    classes = teacher.logits.argmax(dim=1) if labels is None else labels
    return decoupled_distillation(student.logits, teacher.logits, classes, recipe.tau, *recipe.dkd)


def feature(student: Output, teacher: Output, labels: Tensor | None, recipe: DistillRecipe) -> Tensor:
    """3000 times the similarity-preserving loss of features; the student's head learns from source labels alone."""
    return SIMILARITY_WEIGHT * similarity_distillation(student.features, teacher.features)


DISTILLATIONS: dict[str, Distillation] = {"kl": kl, "mse": mse, "ce": ce, "dkd": dkd, "feature": feature}


class Distill(Method):
    """The student learns from a teacher that no longer changes, on `domains`; None: those of the recipe."""

    def __init__(self, workshop: Workshop, domains: tuple[str, ...] | None = None) -> None:
        super().__init__(workshop)
        self.domains = domains or workshop.recipe.distill.domains
        self.learners = {"student": workshop.learner("student")}

    def step(self, batch: Batch, progress: float) -> Terms:
        """L_TKD + L_SKD (eqs. 3-4), or one of them; the teacher is in eval mode."""
        with torch.no_grad():
            source = self.workshop.output("teacher", batch.source_images) if "source" in self.domains else None
            target = self.workshop.output("teacher", batch.target_images) if "target" in self.domains else None
        loss, terms = distill(self.workshop, batch, source, target)
        descend(loss, progress, self.learners["student"], terms=terms)
        return detached(terms)


def distill(
    workshop: Workshop, batch: Batch, teacher_source: Output | None, teacher_target: Output | None
) -> tuple[Tensor, Terms]:
    """L_TKD + L_SKD (KD-UDA eqs. 3-4) of the student, and its terms; one of them where the other is not asked for.

    Cross-entropy on source labels belongs to L_SKD.
    """
    recipe = workshop.recipe.distill
    loss = DISTILLATIONS[recipe.loss]
    terms: Terms = {}
    teacher_source = teacher_source if "source" in recipe.domains else None
    teacher_target = teacher_target if "target" in recipe.domains else None
    if teacher_source is None:
        student_target = workshop.output("student", batch.target_images)
        student_source = None
    elif teacher_target is None:
        student_source, student_target = workshop.output("student", batch.source_images), None
    else:
        student_source, student_target = workshop.forward("student", batch)
    total = batch.source_images.new_zeros(())
    if student_target is not None and teacher_target is not None:
        terms["target_kd"] = loss(student_target, teacher_target, None, recipe)
        total = total + terms["target_kd"]
    if student_source is not None and teacher_source is not None:
        terms["source_kd"] = loss(student_source, teacher_source, batch.source_labels, recipe)
        terms["student_cross_entropy"] = F.cross_entropy(student_source.logits, batch.source_labels)
        total = total + terms["source_kd"] + recipe.alpha * terms["student_cross_entropy"]
    return total, terms
