"""What `distill.loss` may name: values by hand or in float64, who learns, and what stands in for target labels."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeda.errors import InputError
from edgeda.losses.distillation import (
    decoupled_distillation,
    distillation_ce,
    distillation_kl,
    distillation_mse,
    similarity_distillation,
)
from edgeda.methods import stages
from edgeda.methods.distillation import DISTILLATIONS
from edgeda.methods.kd_uda import KdUda
from edgeda.outputs import Output
from edgeda.recipe import DistillRecipe
from tests.unit.test_alignment_losses import drawn
from tests.unit.test_losses import softmax64
from tests.workshop import batch, changed, recipe, weights, workshop


def kl64(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    return (teacher * np.log(teacher / student)).sum(axis=1)


def test_mse_by_hand():
    # teacher (3/4, 1/4), student (1/2, 1/2), and two that agree: (1/16 + 1/16 + 0) / 2
    teacher, student = torch.tensor([[math.log(3.0), 0.0], [1.0, 1.0]]), torch.zeros(2, 2)
    assert distillation_mse(student, teacher, 1.0).item() == pytest.approx(1 / 16, rel=1e-6)
    assert distillation_mse(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 / 16, rel=1e-6)


def test_ce_is_kl_and_the_entropy_of_the_teacher():
    student, teacher, tau = drawn(5, 4).requires_grad_(), drawn(5, 4, seed=1), 3.0
    outputs = F.softmax(teacher / tau, dim=1)
    entropy = -(outputs * outputs.log()).sum(dim=1).mean()
    ce, kl = distillation_ce(student, teacher, tau), distillation_kl(student, teacher, tau)
    assert ce.item() == pytest.approx(kl.item() + tau**2 * entropy.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ce, kl)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_decoupled_parts_in_float64():
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(4, 5)) * 2, random.normal(size=(4, 5)) * 2
    classes, rows, tau = np.array([0, 3, 3, 4]), np.arange(4), 2.0
    p, q = softmax64(teacher, tau), softmax64(student, tau)
    pairs = [np.stack([x[rows, classes], 1 - x[rows, classes]], axis=1) for x in (p, q)]
    others = [
        np.stack([np.delete(row, label) / np.delete(row, label).sum() for row, label in zip(x, classes, strict=True)])
        for x in (p, q)
    ]
    expected = tau**2 * (0.7 * kl64(*pairs).mean() + 5.0 * kl64(*others).mean())
    arguments = torch.tensor(student), torch.tensor(teacher), torch.tensor(classes)
    assert decoupled_distillation(*arguments, tau, 0.7, 5.0).item() == pytest.approx(expected, rel=1e-5)


def test_decoupled_with_the_teachers_own_weight_is_kl():
    """KL = TCKD + (1 - p_k) NCKD, image by image (the paper's identity)."""
    for seed in range(3):
        student, teacher = drawn(1, 6, seed=seed), drawn(1, 6, seed=seed + 10)
        rest = 1 - F.softmax(teacher / 4, dim=1)[0, 2].item()
        found = decoupled_distillation(student, teacher, torch.tensor([2]), 4.0, 1.0, rest)
        assert found.item() == pytest.approx(distillation_kl(student, teacher, 4.0).item(), rel=1e-4, abs=1e-6)


def test_decoupled_of_a_certain_teacher_is_finite():
    student = torch.tensor([[0.0, 0.0, 0.0], [0.0, 500.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[500.0, 0.0, 0.0], [500.0, 0.0, 0.0]])
    loss = decoupled_distillation(student, teacher, torch.tensor([0, 0]), 1.0)
    loss.backward()
    # TCKD: ln 3 and 500, NCKD: 0 and KL((1/2, 1/2) || (1, e^-500)) = 250 - ln 2
    assert loss.item() == pytest.approx((math.log(3) + 500 + 8 * (250 - math.log(2))) / 2, rel=1e-5)
    assert torch.isfinite(student.grad).all()


def test_decoupled_of_two_classes_has_nothing_but_the_target_class():
    student, teacher = drawn(3, 2), drawn(3, 2, seed=1)
    found = decoupled_distillation(student, teacher, torch.tensor([0, 1, 1]), 2.0, 1.0, 8.0)
    assert found.item() == pytest.approx(distillation_kl(student, teacher, 2.0).item(), rel=1e-5)


def test_similarity_by_hand():
    # two orthogonal features against two equal ones: rows (1, 0), (0, 1) and (1, 1) / sqrt 2 twice
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    half = 1 / math.sqrt(2)
    expected = 2 * ((1 - half) ** 2 + half**2) / 4
    assert similarity_distillation(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert similarity_distillation(5 * student, student).item() == pytest.approx(0.0, abs=1e-12)


def test_similarity_of_zero_features_has_a_finite_gradient():
    student = torch.zeros(3, 2, requires_grad=True)
    similarity_distillation(student, torch.ones(3, 4)).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", DISTILLATIONS)
@pytest.mark.parametrize("labelled", [True, False])
def test_the_teacher_is_detached_and_the_student_learns(name, labelled):
    student = Output(drawn(4, 6).requires_grad_(), drawn(4, 3, seed=1).requires_grad_())
    teacher = Output(drawn(4, 8, seed=2).requires_grad_(), drawn(4, 3, seed=3).requires_grad_())
    loss = DISTILLATIONS[name](student, teacher, torch.tensor([0, 1, 2, 0]) if labelled else None, DistillRecipe())
    loss.backward()
    assert teacher.features.grad is None
    assert teacher.logits.grad is None
    learned = student.features if name == "feature" else student.logits
    assert learned.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in DISTILLATIONS if name != "ce"])
def test_a_student_that_agrees_has_nothing_to_learn(name):
    output = Output(drawn(4, 6), drawn(4, 3, seed=1))
    loss = DISTILLATIONS[name](output, output, torch.tensor([0, 1, 2, 0]), DistillRecipe())
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["kl", "mse", "ce", "dkd"])
def test_the_gradient_does_not_shrink_with_temperature(name):
    """tau**2 is there: at high temperatures the gradient on the student's logits reaches a limit."""
    sizes = []
    for tau in (50.0, 200.0):
        student = Output(drawn(4, 6), drawn(4, 3, seed=1).requires_grad_())
        teacher = Output(drawn(4, 6), drawn(4, 3, seed=3))
        DISTILLATIONS[name](student, teacher, torch.tensor([0, 1, 2, 0]), DistillRecipe(tau=tau)).backward()
        sizes.append(student.logits.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert sizes[0] > 1e-3


def test_without_labels_dkd_takes_the_class_the_teacher_predicts():
    student, teacher = Output(drawn(3, 2), drawn(3, 4)), Output(drawn(3, 2), drawn(3, 4, seed=1))
    predicted = teacher.logits.argmax(dim=1)
    chosen = DistillRecipe(tau=4.0)
    found = DISTILLATIONS["dkd"](student, teacher, None, chosen)
    assert torch.equal(found, DISTILLATIONS["dkd"](student, teacher, predicted, chosen))
    assert not torch.equal(found, DISTILLATIONS["dkd"](student, teacher, (predicted + 1) % 4, chosen))


def test_a_loss_that_is_not_there_is_refused_with_the_nearest():
    assert DistillRecipe().loss == "kl"
    for asked, hint in (("features", "did you mean 'feature'"), ("?", "known: kl, mse, ce, dkd, feature")):
        with pytest.raises(InputError, match=rf"unknown distill\.loss '{re.escape(asked)}'; {hint}"):
            stages(recipe(distill={"loss": asked}))


def test_each_loss_makes_another_student():
    students = {}
    for name in DISTILLATIONS:
        shop = workshop(recipe(distill={"loss": name, "beta": [0.5, 0.5]}))
        before = weights(shop, "student")
        terms = KdUda(shop).step(batch(), 0.5)
        assert {"target_kd", "source_kd"} <= set(terms)
        students[name] = weights(shop, "student")
        assert changed(before, students[name])
    assert all(changed(students["kl"], students[name]) for name in ("mse", "dkd", "feature"))
    # ce has the gradient of kl
    assert all(torch.allclose(students["kl"][key], value, atol=1e-5) for key, value in students["ce"].items())


def test_source_images_are_distilled_with_their_labels():
    """dkd of the source batch must use its labels: other labels make another student, alpha being 0."""
    students = []
    for shift in (0, 1):
        shop = workshop(recipe(distill={"loss": "dkd", "beta": [1.0, 1.0], "alpha": 0.0}))
        data = batch()
        data.source_labels.copy_((data.source_labels + shift) % 3)
        KdUda(shop).step(data, 0.5)
        students.append(weights(shop, "student"))
    assert changed(*students)
