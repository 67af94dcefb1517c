"""The two simpler orders of the same steps: KD-UDA's baselines 1 and 2 (section IV-B).

Each step gets `train.epochs` of its own, so both train longer than the joint method.
"""

from __future__ import annotations

from functools import partial

from edgeda.errors import InputError
from edgeda.methods.base import Stage
from edgeda.methods.distillation import Distill
from edgeda.methods.source_only import reference_stage, source_stage, warm_up_stages
from edgeda.methods.uda import adaptation_stages
from edgeda.recipe import Recipe


def plan_uda_then_kd(recipe: Recipe) -> list[Stage]:
    """Teacher adapts, then teaches (baseline 1)."""
    return [
        *warm_up_stages(recipe, "student", "teacher"),
        reference_stage(recipe),
        *adaptation_stages(recipe, "teacher"),
        Stage(
            "distillation", recipe.train.epochs, Distill, ("student",), ("student",),
            adapts="target" in recipe.distill.domains, starts_from={"teacher": "teacher"},
        ),
    ]  # fmt: skip


def plan_kd_then_uda(recipe: Recipe) -> list[Stage]:
    """Student is taught, then adapts (baseline 2).

    Its teacher knows the source alone.
    """
    if "source" not in recipe.distill.domains:
        raise InputError("kd-then-uda distils on the source: distill.domains must name it")
    return [
        *warm_up_stages(recipe, "student", "teacher"),
        reference_stage(recipe),
        source_stage("teacher on the source", recipe.train.epochs, "teacher", scores=("teacher",)),
        Stage(
            "distillation", recipe.train.epochs, partial(Distill, domains=("source",)), ("student",),
            starts_from={"teacher": "teacher"}, reads=("student", "teacher", "distill"),
        ),
        *adaptation_stages(recipe, "student"),
    ]  # fmt: skip
