"""Adapters: how one network is adapted to the target, whatever method it is part of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from edgeda.alignments import build_alignments
from edgeda.data.batches import Batch
from edgeda.methods.base import Stage, Terms, Workshop, plain_network
from edgeda.methods.learner import Learner
from edgeda.models import Output
from edgeda.recipe import AdaptRecipe, Recipe
from edgeda.schedules import gamma


class Adapted(NamedTuple):
    """What an adapter makes of a batch: the scalar loss, its named terms, the network's outputs."""

    loss: Tensor
    terms: Terms
    source: Output | None
    target: Output | None
    """Outputs, where the adapter computes them; they carry gradients."""


class Adapter(ABC):
    """Adapts the network of `role`. `learners` step together, down the loss of one batch."""

    aligns: ClassVar[bool] = False
    """Whether it uses the recipe's alignments."""

    def __init__(self, workshop: Workshop, role: str) -> None:
        self.workshop, self.role = workshop, role
        self.learners: dict[str, Learner] = {}
        self.adversaries: dict[str, Learner] = {}
        """Those that step by themselves, inside `adapt`."""

    @abstractmethod
    def adapt(self, batch: Batch, progress: float) -> Adapted:
        """The loss of a batch at `progress` of the stage; an adversary steps here, by itself."""

    @classmethod
    def preparation(cls, recipe: Recipe) -> list[Stage]:
        """Stages that must come before; none by default."""
        return []


class AlignmentAdapter(Adapter):
    """L_TDA (KD-UDA eq. 2): the recipe's alignments and cross-entropy on the source."""

    aligns: ClassVar[bool] = True

    def __init__(self, workshop: Workshop, role: str) -> None:
        super().__init__(workshop, role)
        plain = plain_network(workshop.networks[role])
        module = workshop.module(
            f"adaptation of {role}",
            lambda: Adaptation(workshop.recipe.adapt, plain.feature_width, plain.architecture.classes),
        )
        assert isinstance(module, Adaptation)
        self.adaptation = module
        self.learners = {role: workshop.learner(role, module)}

    def adapt(self, batch: Batch, progress: float) -> Adapted:
        """One forward of both domains."""
        source, target = self.workshop.forward(self.role, batch)
        loss, terms = self.adaptation(source, target, batch.source_labels, progress)
        return Adapted(loss, terms, source, target)


class Adaptation(nn.Module):
    """Alignment of the domains and cross-entropy on the source (KD-UDA eq. 2).

    gamma(p) ramps the alignments without a ramp of their own (`Alignment.own_ramp`), or the cross-entropy.
    """

    def __init__(self, recipe: AdaptRecipe, features: int, classes: int) -> None:
        super().__init__()
        self._recipe = recipe
        self.alignments = nn.ModuleDict(build_alignments(recipe.alignment, features, classes))

    def forward(self, source: Output, target: Output, labels: Tensor, progress: float) -> tuple[Tensor, Terms]:
        """The scalar loss and its named terms, before weighting."""
        terms: Terms = {
            name: alignment(source, target, labels, progress) for name, alignment in self.alignments.items()
        }
        ramped = [terms[name] for name, alignment in self.alignments.items() if not alignment.own_ramp]
        own = [terms[name] for name, alignment in self.alignments.items() if alignment.own_ramp]
        nothing = source.logits.new_zeros(())
        alignment = self._recipe.weight * (torch.stack(ramped).sum() if ramped else nothing)
        adversarial = self._recipe.weight * (torch.stack(own).sum() if own else nothing)
        classification = nn.functional.cross_entropy(source.logits, labels)
        ramp = gamma(progress)
        terms["cross_entropy"] = classification
        if self._recipe.gamma_on == "alignment":
            return classification + ramp * alignment + adversarial, terms
        return alignment + ramp * classification + adversarial, terms
