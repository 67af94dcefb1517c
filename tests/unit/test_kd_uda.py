"""Algorithm 1, line by line: who gets which gradient, in which mode, with which statistics.

The published code got each of these wrong: the teacher learned from distillation, networks stayed in
eval mode after the first evaluation, and BatchNorm was frozen.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from edgeda.losses.distillation import distillation_kl
from edgeda.losses.mmd import mmd
from edgeda.methods.adapter import Adaptation, AlignmentAdapter
from edgeda.methods.base import Workshop
from edgeda.methods.kd_uda import KdUda
from tests.workshop import batch, changed, descend, recipe, weights, workshop


def shop_adaptation(shop: Workshop) -> Adaptation:
    return AlignmentAdapter(shop, "teacher").adaptation


def test_a_step_is_algorithm_1_written_out_plainly():
    shop = workshop(recipe())
    data, progress = batch(), 0.5
    teacher, student = (copy.deepcopy(shop.networks[role].module) for role in ("teacher", "student"))

    # independent of edgeda.methods: plain autograd, plain SGD, in the order of the algorithm box
    beta, gamma = 0.1 * 9**progress, 2 / (1 + math.exp(-10 * progress)) - 1
    images = torch.cat([data.source_images, data.target_images])
    features, logits = teacher(images)
    adaptation = F.cross_entropy(logits[:4], data.source_labels) + gamma * mmd(features[:4], features[4:])
    descend(teacher, (1 - beta) * adaptation)
    with torch.no_grad():
        soft = teacher(images).logits
    mine = student(images).logits
    loss = distillation_kl(mine[4:], soft[4:], 4.0) + distillation_kl(mine[:4], soft[:4], 4.0)
    loss = loss + 0.8 * F.cross_entropy(mine[:4], data.source_labels)
    descend(student, beta * loss)

    KdUda(shop).step(data, progress)
    for role, expected in (("teacher", teacher), ("student", student)):
        found = shop.networks[role].module
        for name, value in expected.state_dict().items():
            assert torch.allclose(found.state_dict()[name].float(), value.float(), atol=1e-6), f"{role} {name}"


@pytest.mark.parametrize("end_to_end", [False, True])
def test_the_teacher_gets_nothing_from_distillation(end_to_end):
    """With the adaptation loss at zero weight the teacher must not move, however wrong the student is."""
    shop = workshop(recipe(distill={"end_to_end": end_to_end, "beta": [1.0, 1.0]}))
    before = {role: weights(shop, role) for role in ("teacher", "student")}
    KdUda(shop).step(batch(), 0.5)
    assert not changed(before["teacher"], weights(shop, "teacher"))
    assert changed(before["student"], weights(shop, "student"))


@pytest.mark.parametrize("end_to_end", [False, True])
def test_the_student_gets_nothing_from_adaptation(end_to_end):
    shop = workshop(recipe(distill={"end_to_end": end_to_end, "beta": [1e-12, 1e-12]}))
    before = {role: weights(shop, role) for role in ("teacher", "student")}
    KdUda(shop).step(batch(), 0.5)
    moved = max((before["student"][n] - v).abs().max().item() for n, v in weights(shop, "student").items())
    assert moved < 1e-9
    assert changed(before["teacher"], weights(shop, "teacher"))


def test_the_student_learns_from_the_teacher_after_its_step():
    """`recompute_teacher: false` reuses the logits from before the step: another student comes out."""
    students = []
    for recompute in (True, False):
        shop = workshop(recipe(distill={"recompute_teacher": recompute, "beta": [0.5, 0.5]}))
        KdUda(shop).step(batch(), 0.5)
        students.append(weights(shop, "student"))
    assert changed(*students)


def test_the_teacher_moves_away_from_the_source_gradient_when_aligned():
    """gamma(0) is 0: at the start the teacher's step is cross-entropy alone; later the MMD has its say."""
    moved = []
    for progress, weight in ((0.0, 0.0), (0.0, 5.0), (0.9, 0.0), (0.9, 5.0)):
        shop = workshop(recipe(adapt={"weight": weight}, distill={"beta": [0.5, 0.5]}))
        KdUda(shop).step(batch(), progress)
        moved.append(weights(shop, "teacher"))
    assert not changed(moved[0], moved[1])
    assert changed(moved[2], moved[3])


def test_gamma_weighs_what_the_recipe_says():
    """Eq. 2 as printed ramps the cross-entropy: at progress 0 the teacher then follows the MMD alone."""
    shop = workshop(recipe(adapt={"gamma_on": "classification"}, distill={"beta": [0.5, 0.5]}))
    before = weights(shop, "teacher")
    KdUda(shop).step(batch(), 0.0)
    after = weights(shop, "teacher")
    assert torch.equal(before["head.weight"], after["head.weight"]), "MMD on features leaves the head alone"
    assert not torch.equal(before["backbone.conv1.0.weight"], after["backbone.conv1.0.weight"])


@pytest.mark.parametrize("gamma_on", ["alignment", "classification"])
def test_a_discriminator_learns_before_the_teacher_feels_it(gamma_on):
    """At progress 0 the reversal's lambda is 0, not the discriminator's loss: gamma must not ramp it a second time."""
    moved, learned = [], []
    for weight in (0.0, 1.0):
        shop = workshop(recipe(adapt={"alignment": ["dann"], "weight": weight, "gamma_on": gamma_on}))
        method = KdUda(shop)
        adaptation = shop.modules["adaptation of teacher"]
        before = copy.deepcopy(adaptation.state_dict())
        method.step(batch(), 0.0)
        after = adaptation.state_dict()
        learned.append(not torch.equal(before["alignments.dann.discriminator.0.weight"],
                                       after["alignments.dann.discriminator.0.weight"]))  # fmt: skip
        moved.append(weights(shop, "teacher"))
    assert learned == [False, True]
    assert not changed(*moved)


def test_an_adversarial_loss_is_not_ramped_beside_one_that_is():
    """gamma * weight * mmd + weight * dann + CE, whatever gamma is."""
    shop = workshop(recipe(adapt={"alignment": ["mmd", "dann"], "weight": 2.0}))
    adaptation = shop_adaptation(shop)
    source, target = shop.forward("teacher", batch())
    loss, terms = adaptation(source, target, batch().source_labels, 0.1)
    gamma = 2 / (1 + math.exp(-1)) - 1
    expected = terms["cross_entropy"] + 2 * gamma * terms["mmd"] + 2 * terms["dann"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_heads_of_alignments_learn_at_the_head_learning_rate():
    part = {**recipe().teacher.model_dump(), "head_lr_multiplier": 7.0}
    shop = workshop(recipe(adapt={"alignment": ["cdan+e", "mdd"]}, teacher=part))
    method = KdUda(shop)
    rates = {id(p): group["lr"] for group in method.learners["teacher"].optimizer.param_groups for p in group["params"]}
    own = list(shop.modules["adaptation of teacher"].parameters())
    assert len(own) == 10 + 4
    assert [rates[id(parameter)] for parameter in own] == pytest.approx([0.7] * 14)


def test_a_step_uses_batch_statistics_and_moves_the_running_ones():
    shop = workshop(recipe())
    before = {role: shop.networks[role].module.backbone.bn1.running_mean.clone() for role in ("teacher", "student")}
    method = KdUda(shop)
    method.step(batch(), 0.5)
    teacher, student = (shop.networks[role].module.backbone.bn1 for role in ("teacher", "student"))
    assert not torch.equal(before["teacher"], teacher.running_mean)
    assert not torch.equal(before["student"], student.running_mean)
    assert teacher.num_batches_tracked == 2, "once before its step, once for the student (Algorithm 1, line 5)"
    assert student.num_batches_tracked == 1


def test_batchnorm_sees_both_domains_together_or_apart():
    data = batch()
    outputs = {}
    for mode in ("joint", "per-domain"):
        shop = workshop(recipe(adapt={"batchnorm": mode}))
        outputs[mode] = shop.forward("teacher", data)
        network = workshop(recipe()).networks["teacher"].module
        if mode == "joint":
            expected = network(torch.cat([data.source_images, data.target_images])).logits[:4]
        else:
            expected = network(data.source_images).logits
        assert torch.allclose(outputs[mode][0].logits, expected, atol=1e-5)
    assert not torch.allclose(outputs["joint"][0].logits, outputs["per-domain"][0].logits, atol=1e-3)


def test_terms_are_named_and_carry_no_graph():
    terms = KdUda(workshop(recipe(adapt={"alignment": ["mmd", "mcc"]}))).step(batch(), 0.5)
    assert set(terms) == {"mmd", "mcc", "cross_entropy", "target_kd", "source_kd", "student_cross_entropy"}
    assert not any(value.requires_grad for value in terms.values())


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched():
    from edgeda.errors import Diverged

    shop = workshop(recipe())
    before = weights(shop, "teacher")
    broken = batch()
    broken.source_images[0, 0, 0, 0] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        KdUda(shop).step(broken, 0.5)
    assert not changed(before, weights(shop, "teacher"))
