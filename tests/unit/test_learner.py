"""One step of several optimizers: each scaled, clipped and checked by itself."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from edgeda.errors import Diverged
from edgeda.methods.learner import Learner, descend


def learners(fabric: Fabric, clip_norm: float = 0.0) -> list[tuple[torch.nn.Parameter, Learner]]:
    found = []
    for _ in range(2):
        parameter = torch.nn.Parameter(torch.zeros(3))
        found.append((parameter, Learner(fabric, torch.optim.SGD([parameter], lr=1.0), lambda p: 1.0, clip_norm)))
    return found


def loss_of(*parameters: torch.nn.Parameter) -> torch.Tensor:
    """Gradients (3, 0, 4) and (6, 0, 8)."""
    direction = torch.tensor([3.0, 0.0, 4.0])
    return sum((index + 1) * (parameter * direction).sum() for index, parameter in enumerate(parameters))


@pytest.mark.parametrize("scaled", [False, True])
def test_every_learner_takes_its_own_gradient_once(scaled: bool):
    """fp16's scaler multiplies the loss; each optimizer's gradients must be divided by it exactly once."""
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))] if scaled else []
    fabric = Fabric(accelerator="cpu", devices=1, plugins=plugins)
    (first, one), (second, two) = learners(fabric)
    descend(loss_of(first, second), 0.5, one, two)
    assert first.tolist() == [-3.0, 0.0, -4.0]
    assert second.tolist() == [-6.0, 0.0, -8.0]


def test_norms_are_clipped_learner_by_learner():
    (first, one), (second, two) = learners(Fabric(accelerator="cpu", devices=1), clip_norm=5.0)
    descend(loss_of(first, second), 0.5, one, two)
    assert first.tolist() == pytest.approx([-3.0, 0.0, -4.0], rel=1e-5), "a norm of 5 is let through"
    assert second.tolist() == pytest.approx([-3.0, 0.0, -4.0], rel=1e-5), "a norm of 10 is halved"


def test_a_gradient_that_is_not_finite_moves_nobody():
    (first, one), (second, two) = learners(Fabric(accelerator="cpu", devices=1))
    with pytest.raises(Diverged, match="gradient"):
        descend(first.sum() + (second - 0.0).abs().sqrt().sum(), 0.5, one, two)
    assert first.tolist() == second.tolist() == [0.0, 0.0, 0.0]
