"""What methods are made of: a workshop with networks, learners that own optimizers, stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from edgeda.alignments import build_alignments
from edgeda.data.batches import Batch
from edgeda.errors import Diverged
from edgeda.models import Network, Output
from edgeda.recipe import NetworkRecipe, Recipe
from edgeda.schedules import gamma, learning_rate

Terms = dict[str, Tensor]


def plain_network(network: nn.Module) -> Network:
    """The network inside Fabric's wrapper."""
    inner = getattr(network, "module", network)
    assert isinstance(inner, Network)
    return inner


class Learner:
    """One optimizer over one or more networks, with their learning rates, schedules and checks."""

    def __init__(
        self, fabric: Fabric, parts: list[tuple[nn.Module, NetworkRecipe]], extra: nn.Module | None, clip_norm: float
    ) -> None:
        self._fabric, self._clip_norm = fabric, clip_norm
        groups: list[dict[str, Any]] = []
        self._schedules: list[tuple[float, NetworkRecipe]] = []
        for network, recipe in parts:
            plain = plain_network(network)
            new = list(plain.new_parameters())
            known = {id(parameter) for parameter in new}
            old = [parameter for parameter in plain.parameters() if id(parameter) not in known]
            self._add(groups, old, recipe, recipe.lr)
            self._add(groups, new, recipe, recipe.lr * recipe.head_lr_multiplier)
        if extra is not None and any(True for _ in extra.parameters()):
            recipe = parts[0][1]
            self._add(groups, list(extra.parameters()), recipe, recipe.lr * recipe.head_lr_multiplier)
        self.optimizer: Any = fabric.setup_optimizers(torch.optim.SGD(groups, lr=parts[0][1].lr, foreach=True))
        self._parameters = [parameter for group in groups for parameter in group["params"]]

    def _add(self, groups: list[dict[str, Any]], params: list[nn.Parameter], recipe: NetworkRecipe, lr: float) -> None:
        groups.append({
            "params": params, "lr": lr, "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov and recipe.momentum > 0,
        })  # fmt: skip
        self._schedules.append((lr, recipe))

    def descend(self, loss: Tensor, progress: float) -> None:
        """One step down `loss`; raises Diverged, with nothing changed, when loss or gradient is not finite."""
        for group, (lr, recipe) in zip(self.optimizer.param_groups, self._schedules, strict=True):
            group["lr"] = lr * learning_rate(progress, recipe.lr_schedule, recipe.lr_warmup)
        self.optimizer.zero_grad(set_to_none=True)
        self._fabric.backward(loss)
        scaler = getattr(self._fabric.strategy.precision, "scaler", None)  # fp16 on a GPU: skips its own overflows
        if scaler is not None:
            scaler.unscale_(self.optimizer.optimizer)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(loss) or (scaler is None and not torch.isfinite(norm)):
            raise Diverged("the loss is not finite" if not torch.isfinite(loss) else "a gradient is not finite")
        if self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        self.optimizer.step()


@dataclass(frozen=True)
class Workshop:
    """What a method is built from: the recipe and the run's networks by role, set up on the device."""

    fabric: Fabric
    recipe: Recipe
    networks: Mapping[str, nn.Module]

    def learner(self, *roles: str, extra: nn.Module | None = None) -> Learner:
        """An optimizer for the networks of `roles`, and for the parameters of an alignment."""
        parts = [(self.networks[role], self.network_recipe(role)) for role in roles]
        return Learner(self.fabric, parts, extra, self.recipe.train.clip_norm)

    def network_recipe(self, role: str) -> NetworkRecipe:
        """The recipe of a role; the source-only student is trained as the student is."""
        return self.recipe.teacher if role == "teacher" else self.recipe.student

    def adaptation(self, role: str) -> Adaptation:
        """The adaptation loss for the network of `role`."""
        network = self.networks[role]
        plain = plain_network(network)
        return Adaptation(self.recipe, plain.feature_width, plain.architecture.classes).to(self.fabric.device)

    def forward(self, role: str, batch: Batch) -> tuple[Output, Output]:
        """Outputs of a network for source and target images, with the recipe's BatchNorm statistics."""
        network = self.networks[role]
        if self.recipe.adapt.batchnorm == "per-domain":
            return network(batch.source_images), network(batch.target_images)
        features, logits = network(torch.cat([batch.source_images, batch.target_images]))
        count = len(batch.source_images)
        return Output(features[:count], logits[:count]), Output(features[count:], logits[count:])


class Adaptation(nn.Module):
    """L_TDA (KD-UDA eq. 2): alignment of the domains and cross-entropy on the source.

    gamma(p) ramps the alignments without a ramp of their own (`Alignment.own_ramp`), or the cross-entropy.
    """

    def __init__(self, recipe: Recipe, features: int, classes: int) -> None:
        super().__init__()
        self._recipe = recipe.adapt
        self.alignments = nn.ModuleDict(build_alignments(self._recipe.alignment, features, classes))

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


class Method(ABC):
    """One training algorithm: it owns its learners and has one step."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.learners: dict[str, Learner] = {}
        self.modules: dict[str, nn.Module] = {}
        """Parameters beside the networks: discriminators and the like."""

    @abstractmethod
    def step(self, batch: Batch, progress: float) -> Terms:
        """Train on one batch at `progress` of the stage in [0, 1); returns named, detached terms."""

    def state(self) -> dict[str, Any]:
        """Optimizers and own parameters, for a checkpoint."""
        return {
            "learners": {name: learner.optimizer.state_dict() for name, learner in self.learners.items()},
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        for name, learner in self.learners.items():
            learner.optimizer.load_state_dict(state["learners"][name])
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])


@dataclass(frozen=True)
class Stage:
    """A part of a run: `epochs` of one method, built when its turn comes."""

    name: str
    epochs: int
    roles: tuple[str, ...]
    """Networks trained here."""
    build: Callable[[Workshop], Method]
    scored: bool = True
    """Whether epochs are evaluated and compete for selection."""
    adapts: bool = False
    """Whether the target is seen: only then may BatchNorm statistics come from it."""
    starts_from: Mapping[str, str] = field(default_factory=dict)
    """Networks that begin with a copy of another's weights: {role: role copied from}."""


def detached(terms: Mapping[str, Tensor]) -> Terms:
    """The same terms, without their graphs."""
    return {name: value.detach() for name, value in terms.items()}
