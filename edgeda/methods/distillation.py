"""What a student may learn from a teacher by: the losses that `distill.loss` names, one line each in DISTILLATIONS."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgeda.losses.distillation import (
    decoupled_distillation,
    distillation_ce,
    distillation_kl,
    distillation_mse,
    similarity_distillation,
)
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
