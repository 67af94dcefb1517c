"""The two simpler orders of the same steps: KD-UDA's baselines 1 and 2 (section IV-B).

Each step gets `train.epochs` of its own, so both train longer than the joint method.
"""

from __future__ import annotations

import torch

from edgeda.data.batches import Batch
from edgeda.errors import InputError
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached
from edgeda.methods.distillation import distill
from edgeda.methods.learner import descend
from edgeda.methods.source_only import reference_stage, source_stage, warm_up_stages
from edgeda.methods.uda import adaptation_stages
from edgeda.recipe import Recipe


class Distil(Method):
    """The student learns from a teacher that no longer changes, on both domains or on the source alone."""

    def __init__(self, workshop: Workshop, domains: tuple[str, ...]) -> None:
        super().__init__(workshop)
        self.domains = domains
        self.learners = {"student": workshop.learner("student")}

    def step(self, batch: Batch, progress: float) -> Terms:
        """L_TKD + L_SKD (eqs. 3-4), or L_SKD; the teacher is in eval mode."""
        with torch.no_grad():
            source = self.workshop.output("teacher", batch.source_images) if "source" in self.domains else None
            target = self.workshop.output("teacher", batch.target_images) if "target" in self.domains else None
        loss, terms = distill(self.workshop, batch, source, target)
        descend(loss, progress, self.learners["student"], terms=terms)
        return detached(terms)


def plan_uda_then_kd(recipe: Recipe) -> list[Stage]:
    """Teacher adapts, then teaches (baseline 1)."""
    domains = recipe.distill.domains

    def build(workshop: Workshop) -> Method:
        return Distil(workshop, domains)

    return [
        *warm_up_stages(recipe, "student", "teacher"),
        reference_stage(recipe),
        *adaptation_stages(recipe, "teacher"),
        Stage(
            "distillation", recipe.train.epochs, build, ("student",), ("student",),
            adapts="target" in domains, starts_from={"teacher": "teacher"},
        ),
    ]  # fmt: skip


def plan_kd_then_uda(recipe: Recipe) -> list[Stage]:
    """Student is taught, then adapts (baseline 2).

    Its teacher knows the source alone.
    """

    if "source" not in recipe.distill.domains:
        raise InputError("kd-then-uda distils on the source: distill.domains must name it")

    def build(workshop: Workshop) -> Method:
        return Distil(workshop, ("source",))

    return [
        *warm_up_stages(recipe, "student", "teacher"),
        reference_stage(recipe),
        source_stage("teacher on the source", recipe.train.epochs, "teacher", scores=("teacher",)),
        Stage(
            "distillation", recipe.train.epochs, build, ("student",),
            starts_from={"teacher": "teacher"}, reads=("student", "teacher", "distill"),
        ),
        *adaptation_stages(recipe, "student"),
    ]  # fmt: skip
