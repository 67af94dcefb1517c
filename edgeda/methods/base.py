"""What methods are made of: a workshop with networks, a method with one step, stages of a run."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from edgeda.data.batches import Batch
from edgeda.distributed.batchnorm import synchronize
from edgeda.distributed.group import Group
from edgeda.methods.learner import Learner
from edgeda.models import Network, Output
from edgeda.recipe import NetworkRecipe, Recipe
from edgeda.schedules import learning_rate

Terms = dict[str, Tensor]


def plain_network(network: nn.Module) -> Network:
    """The network inside Fabric's wrapper."""
    inner = getattr(network, "module", network)
    assert isinstance(inner, Network)
    return inner


@dataclass(frozen=True)
class Workshop:
    """What a method is built from: the recipe and the run's networks by role, set up on the device."""

    fabric: Fabric
    recipe: Recipe
    networks: Mapping[str, nn.Module]
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """By name: what a method trains beside the networks (discriminators and the like). They outlive their stage."""
    saved_modules: dict[str, Any] = field(default_factory=dict)
    """Weights in the checkpoint that is being resumed, of those that are not built yet."""
    group: Group = field(default_factory=Group)
    """The processes that share a batch."""

    def module(self, name: str, build: Callable[[], nn.Module], sees_part: bool = False) -> nn.Module:
        """The module of that name: the one an earlier stage built, or a new one with random numbers of its own.

        A new one is in train mode, even where `build` copies a network as it is at that moment.
        `sees_part`: it is given images or features of this process alone, so its BatchNorm has to be synchronized.
        """
        if name not in self.modules:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.recipe.train.seed + zlib.crc32(name.encode()))
                module = build().to(self.fabric.device).train()
            if name in self.saved_modules:
                module.load_state_dict(self.saved_modules.pop(name))
            if sees_part and self.group.size > 1:
                synchronize(module)
            self.group.follow([*module.parameters(), *module.buffers()])
            self.modules[name] = module
        return self.modules[name]

    def module_states(self) -> dict[str, Any]:
        """Weights of every module, for a checkpoint."""
        return {**self.saved_modules, **{name: module.state_dict() for name, module in self.modules.items()}}

    def network_recipe(self, role: str) -> NetworkRecipe:
        """The recipe of a role; the source-only student is trained as the student is."""
        return self.recipe.teacher if role == "teacher" else self.recipe.student

    def learner(self, role: str, *heads: nn.Module) -> Learner:
        """SGD for the network of `role`, and for modules that learn at the rate of its head."""
        recipe, network = self.network_recipe(role), plain_network(self.networks[role])
        new = list(network.new_parameters())
        known = {id(parameter) for parameter in new}
        old = [parameter for parameter in network.parameters() if id(parameter) not in known]
        new += [parameter for head in heads for parameter in head.parameters()]
        groups = [{"params": old, "lr": recipe.lr}, {"params": new, "lr": recipe.lr * recipe.head_lr_multiplier}]
        kernel = {"fused" if self.fabric.device.type == "cpu" else "foreach": True}
        optimizer = torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0, **kernel,
        )  # fmt: skip
        return self._learner(optimizer, recipe)

    def adam(self, role: str, parameters: Iterator[nn.Parameter], lr: float) -> Learner:
        """Adam with the momentum of adversarial training (0.5, 0.999), on the schedule of `role`."""
        return self._learner(torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.999)), self.network_recipe(role))

    def _learner(self, optimizer: torch.optim.Optimizer, recipe: NetworkRecipe) -> Learner:
        schedule = partial(learning_rate, schedule=recipe.lr_schedule, warmup=recipe.lr_warmup)
        return Learner(self.fabric, optimizer, schedule, self.recipe.train.clip_norm, self.group)

    def forward(self, role: str, batch: Batch) -> tuple[Output, Output]:
        """Outputs of a network for source and target images of the whole batch, by the recipe's BatchNorm statistics.

        A process computes its own images' and is given the other processes' rows.
        """
        network = self.networks[role]
        if self.recipe.adapt.batchnorm == "per-domain":
            source, target = network(batch.source_images), network(batch.target_images)
        else:
            features, logits = network(torch.cat([batch.source_images, batch.target_images]))
            count = len(batch.source_images)
            source, target = Output(features[:count], logits[:count]), Output(features[count:], logits[count:])
        return self.whole(source), self.whole(target)

    def output(self, role: str, images: Tensor) -> Output:
        """Outputs of a network for the whole batch, of which `images` are this process's."""
        return self.whole(self.networks[role](images))

    def whole(self, output: Output) -> Output:
        """The rows of every process."""
        return Output(self.group.whole(output.features), self.group.whole(output.logits))


class Method(ABC):
    """One training algorithm: it owns its learners and has one step."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.learners: dict[str, Learner] = {}

    @abstractmethod
    def step(self, batch: Batch, progress: float) -> Terms:
        """Train on one batch at `progress` of the stage in [0, 1); returns named, detached terms."""

    def state(self) -> dict[str, Any]:
        """Optimizers, for a checkpoint."""
        return {name: learner.optimizer.state_dict() for name, learner in self.learners.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        for name, learner in self.learners.items():
            learner.optimizer.load_state_dict(state[name])
            for parameter, held in learner.optimizer.optimizer.state.items():
                for key, value in held.items():  # as they lie in memory: a fused step takes both for one row of numbers
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        held[key] = torch.empty_like(parameter).copy_(value)


@dataclass(frozen=True)
class Stage:
    """A part of a run: `epochs` of one method, built when its turn comes."""

    name: str
    epochs: int
    """0: networks are only scored, as they are."""
    build: Callable[[Workshop], Method]
    trains: tuple[str, ...] = ()
    """Networks in train mode."""
    scores: tuple[str, ...] = ()
    """Networks that are evaluated after each epoch, which then compete for selection with those of this stage."""
    adapts: bool = False
    """Whether the target is seen: only then may BatchNorm statistics come from it."""
    aligns: bool = False
    """Whether the recipe's alignments act."""
    starts_from: Mapping[str, str | Path] = field(default_factory=dict)
    """Networks that begin with the selected weights of another role or of themselves, or, at the start of the run,
    with a file that edgeda saved."""
    check: Callable[[Workshop], None] | None = None
    """Raises InputError, before anything is trained, for what the stage cannot use."""
    reads: tuple[str, ...] | None = None
    """Sections of the recipe that decide the outcome, beside `data`, `train` and `select`; None: all of them.
    Where they are known, the benchmark trains equal stages of different runs once."""


def detached(terms: Mapping[str, Tensor]) -> Terms:
    """The same terms, without their graphs."""
    return {name: value.detach() for name, value in terms.items()}
