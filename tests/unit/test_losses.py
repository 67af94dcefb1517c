"""Losses against values worked out by hand or, independently of the code, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeda.losses.distillation import distillation_kl
from edgeda.losses.mcc import minimum_class_confusion
from edgeda.losses.mmd import MULTIPLIERS, mmd, squared_distances


def softmax64(logits: np.ndarray, tau: float) -> np.ndarray:
    shifted = logits / tau
    powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_distillation_of_two_classes_by_hand():
    # teacher logits (ln 3, 0) at tau 1: (3/4, 1/4); student (0, 0): (1/2, 1/2)
    # KL(teacher || student) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308120...
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert expected == pytest.approx(0.13081203594)
    assert distillation_kl(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_is_teacher_to_student_and_not_the_other_way_round():
    # KL(student || teacher) of the case above would be 1/2 ln(2/3) + 1/2 ln 2 = 0.1438
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert distillation_kl(student, teacher, 1.0).item() != pytest.approx(0.1438, abs=1e-3)


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_distillation_in_float64(tau):
    random = np.random.default_rng(3)
    student, teacher = random.normal(size=(5, 7)) * 3, random.normal(size=(5, 7)) * 3
    p, q = softmax64(teacher, tau), softmax64(student, tau)
    expected = tau**2 * (p * np.log(p / q)).sum() / 5
    found = distillation_kl(torch.tensor(student), torch.tensor(teacher), tau).item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_distillation_gradient_is_tau_times_the_difference_of_softened_outputs():
    # d/ds tau^2 KL = tau (softmax(s / tau) - softmax(t / tau)) / B
    student = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.3, 2.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]], requires_grad=True)
    distillation_kl(student, teacher, 5.0).backward()
    expected = 5.0 * (F.softmax(student / 5, 1) - F.softmax(teacher / 5, 1)) / 2
    assert torch.allclose(student.grad, expected, atol=1e-6)
    assert teacher.grad is None, "the teacher must learn nothing from distillation"


def test_distillation_of_equal_outputs_is_zero():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert distillation_kl(logits, logits + 3.0, 4.0).item() == pytest.approx(0.0, abs=1e-6)


def test_mmd_of_two_point_masses():
    # n copies of a against n copies of b, squared distance D: the mean over the 2n (2n - 1) ordered pairs
    # is w = D n / (2n - 1), and MMD^2 = sum over m of (1 + 1 - 2 exp(-D / (m w)))
    count, a, b = 3, torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0])
    ratio = (2 * count - 1) / count
    expected = sum(2 - 2 * math.exp(-ratio / multiplier) for multiplier in MULTIPLIERS)
    assert mmd(a.repeat(count, 1), b.repeat(count, 1)).item() == pytest.approx(expected, rel=1e-5)


def test_mmd_in_float64_pair_by_pair():
    random = np.random.default_rng(5)
    source, target = random.normal(size=(6, 4)), random.normal(size=(5, 4)) + 0.7
    points = np.concatenate([source, target])
    distances = np.array([[((x - y) ** 2).sum() for y in points] for x in points])
    width = distances.sum() / (11 * 10)
    kernel = sum(np.exp(-distances / (multiplier * width)) for multiplier in (0.25, 0.5, 1, 2, 4))
    expected = kernel[:6, :6].mean() + kernel[6:, 6:].mean() - 2 * kernel[:6, 6:].mean()
    assert mmd(torch.tensor(source), torch.tensor(target)).item() == pytest.approx(expected, rel=1e-4)


def test_mmd_of_one_set_with_itself_is_zero_and_it_is_symmetric():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(8, 3, generator=generator), torch.randn(8, 3, generator=generator) + 1
    assert mmd(a, a).item() == pytest.approx(0.0, abs=1e-5)
    assert mmd(a, b).item() == pytest.approx(mmd(b, a).item(), rel=1e-5)


def test_mmd_gradient_is_finite_where_points_coincide():
    features = torch.ones(4, 3, requires_grad=True)
    mmd(features, torch.ones(4, 3)).backward()
    assert torch.isfinite(features.grad).all()


def test_squared_distances_by_hand():
    found = squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    assert torch.allclose(found, torch.tensor([[0.0, 25.0, 1.0], [25.0, 0.0, 18.0], [1.0, 18.0, 0.0]]))


def test_confusion_of_certain_predictions_is_zero():
    assert minimum_class_confusion(torch.eye(3) * 1000).item() == pytest.approx(0.0, abs=1e-6)


def test_confusion_of_uniform_predictions():
    # every entry of the normalized confusion is 1/C: (C - 1) / C of the mass is off the diagonal
    assert minimum_class_confusion(torch.zeros(6, 4)).item() == pytest.approx(0.75, rel=1e-6)


def test_confusion_in_float64():
    logits = np.random.default_rng(2).normal(size=(5, 3)) * 2
    y = softmax64(logits, 2.5)
    entropy = -(y * np.log(y)).sum(axis=1)
    weights = 1 + np.exp(-entropy)
    weights = 5 * weights / weights.sum()
    confusion = sum(w * np.outer(row, row) for w, row in zip(weights, y, strict=True))
    confusion /= confusion.sum(axis=1, keepdims=True)
    expected = (confusion.sum() - np.trace(confusion)) / 3
    assert minimum_class_confusion(torch.tensor(logits)).item() == pytest.approx(expected, rel=1e-5)
