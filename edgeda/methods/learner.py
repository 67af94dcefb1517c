"""Learners: an optimizer with its schedule, and one step down a loss with the checks every step needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from edgeda.distributed.group import Group
from edgeda.errors import Diverged
from edgeda.health import LEAST_SCALE, describe_terms


class Learner:
    """One optimizer, the schedule of its learning rates and the largest gradient norm (0: any)."""

    def __init__(
        self, fabric: Fabric, optimizer: torch.optim.Optimizer, schedule: Callable[[float], float], clip_norm: float,
        group: Group | None = None,
    ) -> None:  # fmt: skip
        self.fabric, self.clip_norm, self.group = fabric, clip_norm, group or Group()
        self.optimizer: Any = fabric.setup_optimizers(optimizer)
        self._schedule = schedule
        self._rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer moves."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def prepare(self, progress: float) -> None:
        """Set the learning rates of `progress` and forget the gradients."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._schedule(progress)
        self.optimizer.zero_grad(set_to_none=True)


def descend(loss: Tensor, progress: float, *learners: Learner, terms: Mapping[str, Tensor] | None = None) -> None:
    """One step of every learner down `loss`; raises Diverged, with nothing changed, when it is not finite.

    On several devices the gradient is the mean of theirs. Each learner's gradient norm is clipped by itself. `terms`
    are what the loss is made of, for the error's sake. A gradient that overflows in fp16 is no error: the scaler skips
    the step and lowers its scale.
    """
    for learner in learners:
        learner.prepare(progress)
    fabric = learners[0].fabric
    fabric.backward(loss)
    loss = loss.detach().clone()
    learners[0].group.average([loss, *(p.grad for one in learners for p in one.parameters if p.grad is not None)])
    scaler = getattr(fabric.strategy.precision, "scaler", None)  # fp16 on a GPU: skips its own overflows
    norms = []
    for learner in learners:
        if scaler is not None:
            scaler.unscale_(learner.optimizer.optimizer)
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in learner.parameters if p.grad is not None]))
    if not torch.isfinite(loss):
        raise Diverged(f"the loss is not finite{describe_terms(terms)}")
    if scaler is None and not all(torch.isfinite(norm) for norm in norms):
        raise Diverged("a gradient is not finite")
    for learner, norm in zip(learners, norms, strict=True):
        if learner.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(learner.parameters, learner.clip_norm, norm)
        if scaler is None:
            learner.optimizer.step()
        else:
            scaler.step(learner.optimizer.optimizer)
    if scaler is not None and not all(torch.isfinite(norm) for norm in norms) and scaler.get_scale() < LEAST_SCALE:
        raise Diverged("gradients are not finite in fp16, whatever they are scaled by")
    if scaler is not None:
        scaler.update()  # once: it would let the next optimizer be unscaled a second time
