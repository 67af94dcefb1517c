"""The losses of alignments against values worked out by hand or, independently of the code, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeda.losses.adversarial import (
    domain_loss,
    entropy_weights,
    multilinear_map,
    randomized_multilinear_map,
    reverse_gradient,
)
from edgeda.losses.coral import coral
from edgeda.losses.disparity import classifier_discrepancy, margin_disparity
from edgeda.losses.distillation import (
    decoupled_distillation,
    distillation_ce,
    distillation_kl,
    distillation_mse,
    similarity_distillation,
)
from edgeda.losses.feature_norm import hard_feature_norm, stepwise_feature_norm
from edgeda.losses.mcc import minimum_class_confusion
from edgeda.losses.mmd import joint_mmd, local_mmd, mmd
from edgeda.losses.spectral import batch_nuclear_norm, spectral_penalty


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel64(points: np.ndarray, width: float | None = None) -> np.ndarray:
    """By pairs: one Gaussian of a given width, or five around the mean distance."""
    distances = np.array([[((x - y) ** 2).sum() for y in points] for x in points])
    if width is not None:
        return np.exp(-distances / width)
    mean = distances.sum() / (len(points) * (len(points) - 1))
    return sum(np.exp(-distances / (multiplier * mean)) for multiplier in (0.25, 0.5, 1, 2, 4))


# ---- joint and local MMD


def test_joint_mmd_of_one_layer_is_mmd():
    source, target = drawn(6, 4), drawn(5, 4, seed=1) + 0.5
    assert joint_mmd([source], [target], [None]).item() == pytest.approx(mmd(source, target).item(), rel=1e-6)


def test_joint_mmd_multiplies_kernels_in_float64():
    random = np.random.default_rng(7)
    source, target = random.normal(size=(5, 3)), random.normal(size=(4, 3)) + 0.6
    source_outputs, target_outputs = random.dirichlet([1, 1], 5), random.dirichlet([1, 1], 4)
    kernel = kernel64(np.concatenate([source, target])) * kernel64(
        np.concatenate([source_outputs, target_outputs]), 1.68
    )
    expected = kernel[:5, :5].mean() + kernel[5:, 5:].mean() - 2 * kernel[:5, 5:].mean()
    found = joint_mmd(
        [torch.tensor(source), torch.tensor(source_outputs)],
        [torch.tensor(target), torch.tensor(target_outputs)],
        [None, 1.68],
    )
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_joint_mmd_sees_what_both_marginals_hide():
    """The same features and the same outputs, paired otherwise: each layer's MMD is 0, the joint one is not."""
    features, outputs = torch.tensor([[0.0], [1.0]]), torch.eye(2)
    assert mmd(features, features.flip(0)).item() == pytest.approx(0.0, abs=1e-6)
    assert joint_mmd([features, outputs], [features.flip(0), outputs], [None, 1.68]).item() > 0.5


def test_local_mmd_of_one_hot_outputs_is_the_mean_mmd_of_classes():
    random = np.random.default_rng(8)
    source, target = random.normal(size=(6, 3)), random.normal(size=(5, 3)) + 1
    source_labels, target_labels = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 1, 1, 2, 0])
    kernel = kernel64(np.concatenate([source, target]))
    expected = []
    for label in (0, 1):  # class 2 has no source image, class 3 no target image
        mine, theirs = np.flatnonzero(source_labels == label), 6 + np.flatnonzero(target_labels == label)
        cross = kernel[np.ix_(mine, theirs)].mean()
        expected.append(kernel[np.ix_(mine, mine)].mean() + kernel[np.ix_(theirs, theirs)].mean() - 2 * cross)
    found = local_mmd(
        torch.tensor(source), torch.tensor(target), torch.tensor(source_labels),
        F.one_hot(torch.tensor(target_labels), 4).float(),
    )  # fmt: skip
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_local_mmd_weighs_targets_by_their_outputs_in_float64():
    random = np.random.default_rng(9)
    source, target = random.normal(size=(4, 2)), random.normal(size=(3, 2))
    labels, outputs = np.array([0, 1, 0, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    kernel = kernel64(np.concatenate([source, target]))
    expected = 0.0
    for label in (0, 1):
        weights = np.concatenate([(labels == label) / 2, -outputs[:, label] / outputs[:, label].sum()])
        expected += sum(weights[i] * weights[j] * kernel[i, j] for i in range(7) for j in range(7)) / 2
    found = local_mmd(torch.tensor(source), torch.tensor(target), torch.tensor(labels), torch.tensor(outputs))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_local_mmd_without_a_common_class_is_zero_and_has_a_gradient():
    features = drawn(3, 2).requires_grad_()
    outputs = F.one_hot(torch.tensor([1, 1, 2]), 3).float()
    loss = local_mmd(features, drawn(3, 2, seed=1), torch.tensor([0, 0, 0]), outputs)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(features.grad, torch.zeros(3, 2))


# ---- CORAL


def test_coral_of_two_known_covariances():
    # covariances diag(2/3, 8/3) and [[2, 2], [2, 2]]: squared difference 16/9 + 4 + 4 + 4/9 = 92/9, over 4 * 2^2
    source = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    target = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert coral(source, target).item() == pytest.approx(92 / 9 / 16, rel=1e-6)
    assert coral(source + 100, target - 7).item() == pytest.approx(92 / 9 / 16, rel=1e-4), "means do not count"


# ---- adversarial parts


def test_reversal_keeps_values_and_turns_gradients_round():
    values = drawn(4, 3).requires_grad_()
    reversed_values = reverse_gradient(values, 0.3)
    assert torch.equal(reversed_values, values)
    upstream = drawn(4, 3, seed=1)
    reversed_values.backward(upstream)
    assert torch.allclose(values.grad, -0.3 * upstream)


def test_domain_loss_by_hand():
    # D(source) = 3/4, 1/2; D(target) = 1/4: -1/2 ((ln 3/4 + ln 1/2) / 2 + ln 3/4)
    source, target = torch.tensor([math.log(3.0), 0.0]), torch.tensor([-math.log(3.0)])
    expected = -0.5 * ((math.log(0.75) + math.log(0.5)) / 2 + math.log(0.75))
    assert domain_loss(source, target).item() == pytest.approx(expected, rel=1e-6)
    assert domain_loss(torch.zeros(5), torch.zeros(3)).item() == pytest.approx(math.log(2), rel=1e-6)


def test_domain_loss_with_weights_by_hand():
    source, target = torch.tensor([math.log(3.0), 0.0]), torch.tensor([0.0])
    weights = torch.tensor([3.0, 1.0]), torch.tensor([17.0])
    expected = -0.5 * ((3 * math.log(0.75) + math.log(0.5)) / 4 + math.log(0.5))
    assert domain_loss(source, target, *weights).item() == pytest.approx(expected, rel=1e-6)


def test_domain_loss_of_a_discriminator_that_is_certain_and_wrong_is_finite():
    logits = torch.tensor([-1000.0], requires_grad=True)
    loss = domain_loss(logits, torch.tensor([1000.0]))
    loss.backward()
    assert loss.item() == pytest.approx(1000.0)
    assert logits.grad.item() == pytest.approx(-0.5)


def test_entropy_weights_of_certain_and_of_uniform_outputs():
    logits = torch.tensor([[1000.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    weights = entropy_weights(logits)
    assert torch.allclose(weights, torch.tensor([2.0, 1.25]))  # exp(-0), exp(-ln 4)
    assert not weights.requires_grad


def test_multilinear_map_by_hand():
    found = multilinear_map(torch.tensor([[2.0, 3.0, 5.0]]), torch.tensor([[0.25, 0.75]]))
    assert torch.equal(found, torch.tensor([[0.5, 0.75, 1.25, 1.5, 2.25, 3.75]]))


def test_randomized_map_by_hand():
    features, outputs = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.5]])
    feature_matrix = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, -1.0]])  # products 1, 2, 4, -1
    output_matrix = torch.tensor([[2.0, 2.0, 0.0, 4.0], [0.0, 4.0, 2.0, 4.0]])  # products 1, 3, 1, 4
    found = randomized_multilinear_map(features, outputs, feature_matrix, output_matrix)
    assert torch.allclose(found, torch.tensor([[1.0, 6.0, 4.0, -4.0]]) / 2)


def test_randomized_map_keeps_inner_products_of_the_outer_product():
    features, outputs = drawn(2, 4, seed=3), F.softmax(drawn(2, 3, seed=4), dim=1)
    matrices = drawn(4, 100_000, seed=5), drawn(3, 100_000, seed=6)
    exact = multilinear_map(features, outputs)
    found = randomized_multilinear_map(features, outputs, *matrices)
    assert torch.allclose(found @ found.T, exact @ exact.T, atol=0.05)


# ---- classifiers that disagree


def test_classifier_discrepancy_by_hand():
    # (3/4, 1/4) against (1/2, 1/2), and two equal rows: (1/4 + 1/4 + 0 + 0) / 4
    first = torch.tensor([[math.log(3.0), 0.0], [1.0, 2.0]])
    second = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert classifier_discrepancy(first, second).item() == pytest.approx(0.125, rel=1e-6)


def test_margin_disparity_by_hand():
    # source predicted as 0, the auxiliary gives it 3/4; target predicted as 1, the auxiliary gives it 1/4
    source, source_auxiliary = torch.tensor([[5.0, 1.0]]), torch.tensor([[math.log(3.0), 0.0]])
    target, target_auxiliary = torch.tensor([[0.0, 2.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = math.log(1 - 0.25) + 4 * math.log(0.75)
    found = margin_disparity(source, source_auxiliary, target, target_auxiliary, 4.0)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_margin_disparity_in_float64():
    random = np.random.default_rng(10)
    source, source_auxiliary, target, target_auxiliary = random.normal(size=(4, 5, 3)) * 2

    def outputs(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    rows = np.arange(5)
    expected = np.log(1 - outputs(target_auxiliary)[rows, target.argmax(1)]).mean()
    expected += 3 * np.log(outputs(source_auxiliary)[rows, source.argmax(1)]).mean()
    arguments = [torch.tensor(part) for part in (source, source_auxiliary, target, target_auxiliary)]
    assert margin_disparity(*arguments, 3.0).item() == pytest.approx(expected, rel=1e-5)


def test_margin_disparity_of_a_certain_auxiliary_is_finite():
    logits = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    loss = margin_disparity(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), logits)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.allclose(logits.grad, torch.tensor([[-1.0, 0.5, 0.5]]))  # d log(1 - p): away from the class, to others


# ---- singular values


def test_spectral_penalty_of_known_singular_values():
    features = torch.tensor([[0.0, 3.0, 0.0], [-2.0, 0.0, 0.0]])
    assert spectral_penalty(features).item() == pytest.approx(9.0, rel=1e-6)
    assert spectral_penalty(features, 2).item() == pytest.approx(13.0, rel=1e-6)


def test_spectral_penalty_gradient_is_along_the_first_singular_vectors():
    # d sigma^2 = 2 sigma u v^T
    features = torch.tensor([[0.0, 3.0], [-2.0, 0.0]], requires_grad=True)
    spectral_penalty(features).backward()
    assert torch.allclose(features.grad, torch.tensor([[0.0, 6.0], [0.0, 0.0]]), atol=1e-5)


def test_nuclear_norm_of_one_hot_rows():
    # P^T P is the diagonal of the class counts 3, 1, 0: singular values sqrt(3) and 1
    logits = 1000 * F.one_hot(torch.tensor([0, 0, 1, 0]), 3).float()
    assert batch_nuclear_norm(logits).item() == pytest.approx((math.sqrt(3) + 1) / 4, rel=1e-6)


def test_nuclear_norm_of_uniform_rows():
    # every entry 1/C: rank one, norm sqrt(B C) / C
    assert batch_nuclear_norm(torch.zeros(8, 2)).item() == pytest.approx(math.sqrt(16) / 2 / 8, rel=1e-6)


@pytest.mark.parametrize("loss", [spectral_penalty, batch_nuclear_norm])
def test_singular_values_of_what_is_not_finite_are_not_finite(loss):
    """LAPACK raises; training must see a loss that is not finite and say where."""
    features = torch.tensor([[1.0, math.nan], [0.0, 1.0]], requires_grad=True)
    value = loss(features)
    value.backward()
    assert math.isnan(value.item())


# ---- feature norms


def test_hard_feature_norm_of_known_norms():
    features = torch.tensor([[3.0, 4.0], [5.0, 12.0]])  # norms 5 and 13, mean 9
    assert hard_feature_norm(features, 25.0).item() == pytest.approx(256.0, rel=1e-6)


def test_stepwise_feature_norm_has_a_constant_value_and_lengthens_every_feature():
    features = torch.tensor([[3.0, 4.0], [5.0, 12.0], [0.0, 0.0]], requires_grad=True)
    loss = stepwise_feature_norm(features, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(4.0)
    # d/dx (||x|| - r)^2 / B with ||x|| - r = -2: -4 / 3 of the direction; none where there is no direction
    expected = -4 / 3 * torch.tensor([[0.6, 0.8], [5 / 13, 12 / 13], [0.0, 0.0]])
    assert torch.allclose(features.grad, expected)


# ---- precision

LOSSES = {
    "mmd": lambda x, y: mmd(x, y),
    "joint_mmd": lambda x, y: joint_mmd([x, x.softmax(1)], [y, y.softmax(1)], [None, 1.68]),
    "local_mmd": lambda x, y: local_mmd(x, y, torch.arange(len(x)) % 4, y.softmax(1)),
    "coral": lambda x, y: coral(x, y),
    "mcc": lambda x, y: minimum_class_confusion(y),
    "randomized": lambda x, y: randomized_multilinear_map(x, y, drawn(8, 5), drawn(8, 5, seed=1)).sum(),
    "multilinear": lambda x, y: multilinear_map(x, y).sum(),
    "domain": lambda x, y: domain_loss(x[:, 0], y[:, 0]),
    "weights": lambda x, y: entropy_weights(x).sum(),
    "discrepancy": lambda x, y: classifier_discrepancy(x, y),
    "disparity": lambda x, y: margin_disparity(x, y, y, x),
    "spectral": lambda x, y: spectral_penalty(x),
    "nuclear": lambda x, y: batch_nuclear_norm(x),
    "hard": lambda x, y: hard_feature_norm(x),
    "stepwise": lambda x, y: stepwise_feature_norm(x, 0.5),
    "kl": lambda x, y: distillation_kl(x, y, 4.0),
    "ce": lambda x, y: distillation_ce(x, y, 4.0),
    "mse": lambda x, y: distillation_mse(x, y, 4.0),
    "dkd": lambda x, y: decoupled_distillation(x, y, torch.arange(len(x)) % 8, 4.0),
    "similarity": lambda x, y: similarity_distillation(x, y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_float32_under_autocast(name):
    loss = LOSSES[name]
    source, target = drawn(6, 8), drawn(6, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert (source @ target.T).dtype == torch.bfloat16, "autocast is on here"
        found = loss(source, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(source, target))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "weights"])
def test_losses_take_half_precision(name):
    source, target = drawn(6, 8).bfloat16(), drawn(6, 8, seed=1).bfloat16()
    found = LOSSES[name](source, target)
    assert found.dtype == torch.float32 or name in ("randomized", "multilinear")
    assert found.item() == pytest.approx(LOSSES[name](source.float(), target.float()).item(), rel=1e-2, abs=1e-3)
