"""UDA: unsupervised domain adaptation of one network by itself (KD-UDA's baseline "UDA only")."""

from __future__ import annotations

from functools import partial

from edgeda.data.batches import Batch
from edgeda.methods.adapter import Adapter, AlignmentAdapter
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached
from edgeda.methods.cckdn import CckdnAdapter
from edgeda.methods.learner import descend
from edgeda.methods.source_only import reference_stage, warm_up_stages
from edgeda.recipe import Recipe

ADAPTERS: dict[str, type[Adapter]] = {"alignment": AlignmentAdapter, "cckdn": CckdnAdapter}
"""What `adapt.technique` names."""


class Uda(Method):
    """Adapt the network of one role, by the recipe's technique or another.

    `ramp` fixes the progress that alignments see: 1 for a network that is adapted already.
    """

    def __init__(self, workshop: Workshop, role: str, technique: str | None = None, ramp: float | None = None) -> None:
        super().__init__(workshop)
        self.ramp = ramp
        self.adapter = ADAPTERS[technique or workshop.recipe.adapt.technique](workshop, role)
        self.learners = {**self.adapter.learners, **self.adapter.adversaries}

    def step(self, batch: Batch, progress: float) -> Terms:
        """One step down L_TDA."""
        adapted = self.adapter.adapt(batch, progress if self.ramp is None else self.ramp)
        descend(adapted.loss, progress, *self.adapter.learners.values(), terms=adapted.terms)
        return detached(adapted.terms)


def adaptation_stages(recipe: Recipe, role: str, technique: str | None = None) -> list[Stage]:
    """The adaptation of one network, after what its technique needs first."""
    adapter = ADAPTERS[technique or recipe.adapt.technique]
    build = partial(Uda, role=role, technique=technique)
    stage = Stage(
        f"{role} adaptation", recipe.train.epochs, build, (role,), (role,), adapts=True, aligns=adapter.aligns
    )
    return [*adapter.preparation(recipe), stage]


def plan(recipe: Recipe) -> list[Stage]:
    """Student adapts by itself (baseline 3)."""
    return [*warm_up_stages(recipe, "student"), reference_stage(recipe), *adaptation_stages(recipe, "student")]


def plan_cckdn(recipe: Recipe) -> list[Stage]:
    """Target style by distillation (CCKDN 2023).

    The student learns it from a network that compresses target images.
    """
    return [
        *warm_up_stages(recipe, "student"),
        reference_stage(recipe),
        *adaptation_stages(recipe, "student", "cckdn"),
    ]
