"""Every alignment does to two shifted clouds what its paper says, stays finite on poor batches, and is listed."""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from edgeda.alignments import ALIGNMENTS, Alignment, build_alignments
from edgeda.alignments.afn import AfnAlignment, HardAfnAlignment
from edgeda.alignments.bnm import BnmAlignment
from edgeda.alignments.bsp import BspAlignment
from edgeda.alignments.cdan import CdanAlignment, EntropyCdanAlignment
from edgeda.alignments.coral import CoralAlignment
from edgeda.alignments.dann import DannAlignment
from edgeda.alignments.jmmd import JmmdAlignment
from edgeda.alignments.lmmd import LmmdAlignment
from edgeda.alignments.mcd import McdAlignment
from edgeda.alignments.mdd import MddAlignment
from edgeda.cli import app
from edgeda.errors import InputError
from edgeda.losses.adversarial import domain_loss, entropy_weights
from edgeda.losses.coral import coral
from edgeda.losses.disparity import margin_disparity
from edgeda.losses.feature_norm import hard_feature_norm
from edgeda.losses.mmd import joint_mmd, local_mmd
from edgeda.losses.spectral import batch_nuclear_norm, spectral_penalty
from edgeda.methods.kd_uda import KdUda
from edgeda.outputs import Output
from edgeda.recipe_file import preset_names
from edgeda.schedules import gamma
from tests.workshop import batch, changed, recipe, weights, workshop

CENTRES = 4 * torch.eye(3, 5)
SHIFT = torch.tensor([0.9, 0.9, 0.0, 1.2, 0.0])

Cloud = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def clouds(count: int, generator: torch.Generator) -> Cloud:
    """Source, target and the labels of both: three classes; the target is shifted and its classes lie closer."""
    labels = torch.arange(count) % 3
    source = CENTRES[labels] + torch.randn(count, 5, generator=generator)
    target = 0.8 * CENTRES[labels] + torch.randn(count, 5, generator=generator) + SHIFT
    return source, target, labels


@dataclass(frozen=True)
class Seen:
    """Held-out points after the map: what a measure may look at."""

    source: torch.Tensor
    target: torch.Tensor
    outputs: torch.Tensor
    labels: torch.Tensor


# What each technique is about, measured without its loss.


def distance_of_means(seen: Seen) -> float:
    return (seen.source.mean(0) - seen.target.mean(0)).norm().item()


def distance_of_classes(seen: Seen) -> float:
    return sum(
        (seen.source[seen.labels == label].mean(0) - seen.target[seen.labels == label].mean(0)).norm().item()
        for label in range(3)
    )


def distance_of_covariances(seen: Seen) -> float:
    return (torch.cov(seen.source.T) - torch.cov(seen.target.T)).norm().item()


def uncertainty(seen: Seen) -> float:
    """Mean entropy of target outputs; infinite when a class is no longer predicted."""
    if len(seen.outputs.argmax(1).unique()) < 3:
        return math.inf
    return torch.special.entr(seen.outputs).sum(1).mean().item()


def largest_singular_value(seen: Seen) -> float:
    return torch.linalg.matrix_norm(seen.target, 2).item()


def distance_from_the_radius(seen: Seen) -> float:
    """Of the mean norm of target features from 25."""
    return abs(25 - seen.target.norm(dim=1).mean().item())


MEASURES: dict[str, tuple[Callable[[Seen], float], float]] = {
    "mmd": (distance_of_means, 0.05),
    "mcc": (uncertainty, 0.05),
    "jmmd": (distance_of_means, 0.05),
    "lmmd": (distance_of_classes, 0.05),
    "coral": (distance_of_covariances, 0.05),
    "dann": (distance_of_means, 0.05),
    "cdan": (distance_of_means, 0.05),
    "cdan+e": (distance_of_means, 0.05),
    "mcd": (distance_of_means, 0.05),
    "mdd": (distance_of_means, 0.1),
    "afn": (distance_from_the_radius, 0.2),
    "afn-hard": (distance_from_the_radius, 0.05),
    "bnm": (uncertainty, 0.5),
    "bsp": (largest_singular_value, 0.05),
}
"""By alignment: the measure, and the learning rate."""


def head() -> nn.Linear:
    """Reads the first three features; stays as it is."""
    layer = nn.Linear(5, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3, 5))
        layer.bias.zero_()
    return layer


def identity() -> nn.Linear:
    """A map to be learned, which changes nothing yet."""
    layer = nn.Linear(5, 5)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(5))
        layer.bias.zero_()
    return layer


def test_every_alignment_is_measured():
    assert set(MEASURES) == set(ALIGNMENTS)


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_few_steps_lower_the_shift_of_two_shifted_clouds(name):
    """A map of the target learns by the alignment alone, batch after batch; the shift is measured on other points."""
    torch.manual_seed(0)
    measure, rate = MEASURES[name]
    extractor, classifier = identity(), head()
    alignment = build_alignments((name,), 5, 3)[name]
    optimizer = torch.optim.SGD([*extractor.parameters(), *alignment.parameters()], lr=rate)
    seen, held_out = torch.Generator().manual_seed(1), clouds(600, torch.Generator().manual_seed(2))

    def shift() -> float:
        with torch.no_grad():
            features = extractor(held_out[1])
            return measure(Seen(held_out[0], features, F.softmax(classifier(features), dim=1), held_out[2]))

    before, steps = shift(), 80
    for step in range(steps):
        source, target, labels = clouds(60, seen)
        outputs = [Output(features, classifier(features)) for features in (source, extractor(target))]
        optimizer.zero_grad()
        alignment(outputs[0], outputs[1], labels, step / steps).backward()
        optimizer.step()
    assert shift() < 0.75 * before


# ---- each alignment is its loss, with its weights and of its inputs


@pytest.fixture
def outputs() -> tuple[Output, Output, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    source, target, labels = clouds(12, generator)
    classifier = head()
    features = source.requires_grad_(), target.requires_grad_()
    return (*(Output(part, classifier(part)) for part in features), labels)


Outputs = tuple[Output, Output, torch.Tensor]


def test_alignments_without_parameters_are_their_losses(outputs: Outputs):
    source, target, labels = outputs
    probabilities = F.softmax(source.logits, dim=1), F.softmax(target.logits, dim=1)
    radii = hard_feature_norm(source.features, 25.0) + hard_feature_norm(target.features, 25.0)
    spectral = spectral_penalty(source.features) + spectral_penalty(target.features)
    layers = [[source.features, probabilities[0]], [target.features, probabilities[1]]]
    expected = {
        JmmdAlignment: joint_mmd(layers[0], layers[1], [None, 1.68]),
        LmmdAlignment: local_mmd(source.features, target.features, labels, probabilities[1]),
        CoralAlignment: coral(source.features, target.features),
        BnmAlignment: -batch_nuclear_norm(target.logits),
        BspAlignment: 1e-4 * spectral,
        AfnAlignment: torch.tensor(0.05 * 2),
        HardAfnAlignment: 0.05 * radii,
    }
    for alignment, value in expected.items():
        found = alignment(5, 3)(source, target, labels, 0.5)
        assert found.item() == pytest.approx(value.item(), rel=1e-5), alignment.__name__


def feature_gradient(alignment: Alignment, outputs: Outputs, progress: float) -> torch.Tensor:
    """Of the source's and the target's features, by way of features alone and not of the head."""
    source, target, labels = outputs
    source = Output(source.features.detach().requires_grad_(), source.logits.detach())
    target = Output(target.features.detach().requires_grad_(), target.logits.detach())
    loss = alignment(source, target, labels, progress)
    return torch.cat(torch.autograd.grad(loss, [source.features, target.features], allow_unused=False))


@pytest.mark.parametrize("alignment_class", [DannAlignment, CdanAlignment, EntropyCdanAlignment])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_features_climb_what_the_discriminator_descends(alignment_class, progress, outputs: Outputs):
    """The gradient at the features is -lambda(p) times that of the discriminator's own loss, written out here."""
    torch.manual_seed(0)
    alignment = alignment_class(5, 3)
    source, target, _ = outputs
    features = torch.cat([source.features, target.features]).detach().requires_grad_()
    seen = features
    if alignment_class is not DannAlignment:
        probabilities = F.softmax(torch.cat([source.logits, target.logits]).detach(), dim=1)
        seen = torch.stack([torch.outer(p, f).flatten() for p, f in zip(probabilities, features, strict=True)])
    logits = alignment.discriminator(seen)[:, 0]
    weights = (None, None)
    if alignment_class is EntropyCdanAlignment:
        weights = entropy_weights(source.logits), entropy_weights(target.logits)
    loss = domain_loss(logits[:12], logits[12:], *weights)
    (forward,) = torch.autograd.grad(loss, features)

    assert forward.norm() > 1e-4
    found = feature_gradient(alignment, outputs, progress)
    assert torch.allclose(found, -gamma(progress) * forward, atol=1e-6)
    assert alignment(*outputs, progress).item() == pytest.approx(loss.item(), rel=1e-5), "the value is not reversed"


def test_cdan_weighs_by_entropy_only_when_it_says_so(outputs: Outputs):
    torch.manual_seed(0)
    plain = CdanAlignment(5, 3)
    weighted = EntropyCdanAlignment(5, 3)
    weighted.load_state_dict(plain.state_dict())
    assert plain(*outputs, 1.0).item() != pytest.approx(weighted(*outputs, 1.0).item(), rel=1e-4)


def test_cdan_sends_no_gradient_to_the_head(outputs: Outputs):
    source, target, labels = outputs
    logits = source.logits.detach().requires_grad_(), target.logits.detach().requires_grad_()
    loss = EntropyCdanAlignment(5, 3)(
        Output(source.features, logits[0]), Output(target.features, logits[1]), labels, 1.0
    )
    assert torch.autograd.grad(loss, logits, allow_unused=True) == (None, None)


def test_cdan_randomizes_above_4096_entries_and_keeps_its_matrices():
    exact, randomized = CdanAlignment(1024, 4), CdanAlignment(1025, 4)
    assert exact.discriminator[0].in_features == 4096
    assert randomized.discriminator[0].in_features == 1024
    assert {"feature_matrix", "output_matrix"} <= set(randomized.state_dict())
    assert not any("matrix" in name for name, _ in randomized.named_parameters()), "sampled once, never trained"
    features, outputs = torch.randn(6, 1025), F.softmax(torch.randn(6, 4), dim=1)
    product = (features @ randomized.feature_matrix) * (outputs @ randomized.output_matrix) / 32
    assert torch.allclose(randomized.joined(features, outputs), product, atol=1e-4)


def test_mcd_is_two_cross_entropies_less_the_reversed_discrepancy(outputs: Outputs):
    torch.manual_seed(0)
    alignment, progress = McdAlignment(5, 3), 0.4
    source, target, labels = outputs
    features = target.features.detach().requires_grad_()
    first, second = alignment.first(features), alignment.second(features)
    discrepancy = (F.softmax(first, dim=1) - F.softmax(second, dim=1)).abs().mean()
    heads = list(alignment.parameters())
    downhill = torch.autograd.grad(discrepancy, [features, *heads])
    right = F.cross_entropy(alignment.first(source.features), labels)
    right = right + F.cross_entropy(alignment.second(source.features), labels)
    learned = torch.autograd.grad(right, [source.features, *heads])

    loss = alignment(*outputs, progress)
    assert loss.item() == pytest.approx((right - discrepancy).item(), rel=1e-5)
    found = torch.autograd.grad(loss, [target.features, source.features, *heads])
    assert torch.allclose(found[0], gamma(progress) * downhill[0], atol=1e-6), "features descend the discrepancy"
    assert torch.allclose(found[1], learned[0], atol=1e-6), "and the cross-entropies, not reversed"
    for gradient, up, down in zip(found[2:], downhill[1:], learned[1:], strict=True):
        assert torch.allclose(gradient, down - up, atol=1e-6), "classifiers climb it, right on the source"


def test_mdd_is_reversed_to_a_tenth_and_leaves_the_head_alone(outputs: Outputs):
    torch.manual_seed(0)
    alignment, progress = MddAlignment(5, 3), 0.4
    alignment.eval()  # no dropout, so that the two computations can agree
    source, target, labels = outputs
    features = torch.cat([source.features, target.features]).detach().requires_grad_()
    auxiliary = alignment.auxiliary(features)
    disparity = margin_disparity(source.logits, auxiliary[:12], target.logits, auxiliary[12:], 4.0)
    (downhill,) = torch.autograd.grad(disparity, features)

    logits = source.logits.detach().requires_grad_(), target.logits.detach().requires_grad_()
    loss = alignment(Output(source.features, logits[0]), Output(target.features, logits[1]), labels, progress)
    assert loss.item() == pytest.approx(-disparity.item(), rel=1e-5), "which the auxiliary classifier descends"
    assert torch.allclose(feature_gradient(alignment, outputs, progress), 0.1 * gamma(progress) * downhill, atol=1e-7)
    assert torch.autograd.grad(loss, logits, allow_unused=True) == (None, None)


# ---- what data may look like


def degenerate() -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    source, target, labels = clouds(6, generator)
    return {
        "identical": (torch.ones(6, 5), torch.ones(6, 5), labels),
        "coincident": (source, source.clone(), labels),
        "zero": (torch.zeros(6, 5), torch.zeros(6, 5), labels),
        "two": (source[:2], target[:2], labels[:2]),
        "one sample of a class, none of another": (source, target, torch.tensor([0, 0, 0, 0, 0, 2])),
        "certain": (100 * source, 100 * target, labels),
        "unequal": (source, target[:4], labels),
    }


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("case", degenerate())
def test_loss_and_gradients_are_finite_on_degenerate_batches(name, case):
    torch.manual_seed(0)
    source, target, labels = degenerate()[case]
    extractor, classifier = identity(), head()
    alignment = build_alignments((name,), 5, 3)[name]
    outputs = [Output(features, classifier(features)) for features in (extractor(source), extractor(target))]
    loss = alignment(outputs[0], outputs[1], labels, 0.7)
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in (*extractor.parameters(), *alignment.parameters()):
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


# ---- names, help and refusals


def test_unknown_and_empty_alignments_are_refused_by_name():
    with pytest.raises(InputError, match="did you mean 'mmd'"):
        build_alignments(("mmdd",), 5, 3)
    with pytest.raises(InputError, match="mmd, mcc"):
        build_alignments((), 5, 3)


@pytest.mark.parametrize("name", ["mcd", "mdd"])
def test_comparing_classifiers_needs_two_classes(name):
    with pytest.raises(InputError, match=f"'{name}' compares classes: it needs 2 or more, the source has 1"):
        build_alignments((name,), 5, 1)


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("shape", [(4, 5, 2, 2), (4, 6)])
def test_features_must_be_vectors_of_the_width_it_was_built_for(name, shape):
    alignment = build_alignments((name,), 5, 3)[name]
    output = Output(torch.randn(shape), torch.randn(4, 3))
    with pytest.raises(InputError, match=re.escape(f"(images, 5), not {shape}")):
        alignment(output, output, torch.zeros(4, dtype=torch.int64), 0.5)


def test_coral_refuses_a_batch_of_one_image():
    output = Output(torch.randn(1, 5), torch.randn(1, 3))
    with pytest.raises(InputError, match="two or more images of each domain"):
        CoralAlignment(5, 3)(output, output, torch.zeros(1, dtype=torch.int64), 0.5)


def test_names_are_names_of_modules_too():
    modules = nn.ModuleDict(build_alignments(tuple(ALIGNMENTS), 5, 3))
    assert list(modules) == list(ALIGNMENTS)


def help_of_adapt() -> str:
    ran = CliRunner().invoke(app, ["adapt", "--help"], env={"COLUMNS": "80"})
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_help_names_every_preset():
    listed = help_of_adapt().partition("--recipe")[2].partition("--from")[0]
    assert [name for name in preset_names() if name not in listed.replace(",", " ").split()] == []


def test_help_has_a_line_for_every_alignment():
    text = help_of_adapt()
    assert help_of_adapt() == text, "once only"
    lines = [line.strip() for line in text.splitlines()]
    for name, alignment in ALIGNMENTS.items():
        summary = alignment.summary()
        assert re.fullmatch(r"[A-Z].{15,45}[^.]", summary), "a line of 80 with option and name"
        assert [line for line in lines if line.split("  ")[0] == name and line.endswith(summary)], name


def test_help_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "edgeda.alignments", None)
    assert "pip install 'edgeda[train]'" in help_of_adapt()


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_step_of_kd_uda_with_each(name):
    """With gamma near 1 the alignment changes the teacher, and its own heads learn."""
    teachers = []
    for weight in (0.0, 1.0):
        shop = workshop(recipe(adapt={"alignment": [name], "weight": weight}))
        method = KdUda(shop)
        before = copy.deepcopy(list(shop.modules["adaptation of teacher"].parameters()))
        terms = method.step(batch(), 0.9)
        assert torch.isfinite(terms[name])
        teachers.append(weights(shop, "teacher"))
        for old, new in zip(before, shop.modules["adaptation of teacher"].parameters(), strict=True):
            assert weight == 0.0 or not torch.equal(old, new)
    assert changed(*teachers)
