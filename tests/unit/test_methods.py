"""The methods beside kd-uda: each step against the same step written out plainly, and who gets which gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from edgeda.data.batches import Batch
from edgeda.errors import InputError
from edgeda.losses.distillation import distillation_kl
from edgeda.losses.mmd import mmd
from edgeda.methods import METHODS, method_name, stages, summary
from edgeda.methods.adda import Adda
from edgeda.methods.distillation import Distill
from edgeda.methods.uda import Uda
from tests.workshop import batch, changed, descend, recipe, weights, workshop


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_uda_is_source_cross_entropy_and_alignment():
    shop = workshop(recipe(), ("student",))
    data, progress = batch(), 0.5
    student = copy.deepcopy(shop.networks["student"].module)
    features, logits = student(torch.cat([data.source_images, data.target_images]))
    gamma = 2 / (1 + math.exp(-10 * progress)) - 1
    descend(student, F.cross_entropy(logits[:4], data.source_labels) + gamma * mmd(features[:4], features[4:]))

    Uda(shop, "student").step(data, progress)
    for name, value in student.named_parameters():
        assert torch.allclose(weights(shop, "student")[name], value, atol=1e-6), name


@pytest.mark.parametrize("domains", [("source", "target"), ("target",), ("source",)])
def test_the_student_learns_from_a_fixed_teacher(domains):
    """L_TKD + L_SKD with the teacher in eval mode: its weights and BatchNorm statistics stay as they are."""
    shop = workshop(recipe(distill={"domains": list(domains)}))
    data = batch()
    teacher, student = (copy.deepcopy(shop.networks[role].module) for role in ("teacher", "student"))
    shop.networks["teacher"].eval()
    teacher.eval()
    loss = torch.zeros(())
    if domains == ("source", "target"):
        source, target = student(torch.cat([data.source_images, data.target_images])).logits.split(4)
    elif domains == ("source",):
        source, target = student(data.source_images).logits, None
    else:
        source, target = None, student(data.target_images).logits
    if target is not None:
        loss = loss + distillation_kl(target, teacher(data.target_images).logits, 4.0)
    if source is not None:
        loss = loss + distillation_kl(source, teacher(data.source_images).logits, 4.0)
        loss = loss + 0.8 * F.cross_entropy(source, data.source_labels)
    descend(student, loss)

    before = {name: value.clone() for name, value in shop.networks["teacher"].module.state_dict().items()}
    Distill(shop, domains).step(data, 0.5)
    for name, value in student.named_parameters():
        assert torch.allclose(weights(shop, "student")[name], value, atol=1e-6), name
    assert all(torch.equal(value, before[name]) for name, value in shop.networks["teacher"].state_dict().items())


def test_adda_moves_encoder_and_discriminator_each_down_its_own_loss():
    shop = workshop(recipe(adda={"hidden": 16}), ("student", "source_only"))
    shop.networks["source_only"].eval()
    method, data = Adda(shop), batch()
    critic = copy.deepcopy(method.discriminator)
    fixed, encoder = (copy.deepcopy(shop.networks[role].module) for role in ("source_only", "student"))

    source, target = fixed(data.source_images).features.detach(), encoder(data.target_images).features
    first = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    loss = F.binary_cross_entropy_with_logits(critic(source), ones) / 2
    loss = loss + F.binary_cross_entropy_with_logits(critic(target.detach()), zeros) / 2
    loss.backward()
    first.step()
    second = torch.optim.Adam(encoder.backbone.parameters(), lr=2e-4, betas=(0.5, 0.999))
    F.binary_cross_entropy_with_logits(critic(target), ones).backward()
    second.step()

    source_only, head = weights(shop, "source_only"), weights(shop, "student")["head.weight"]
    method.step(data, 0.5)
    assert not changed(source_only, weights(shop, "source_only"))
    assert torch.equal(head, weights(shop, "student")["head.weight"]), "the classifier is the source's"
    found = dict(shop.networks["student"].module.backbone.named_parameters())
    for name, value in encoder.backbone.named_parameters():
        assert torch.allclose(found[name].grad, value.grad, rtol=1e-3, atol=1e-6), name
    for name, value in critic.named_parameters():
        assert torch.allclose(state(method.discriminator)[name], value, atol=1e-7), name


def test_adda_starts_from_the_source_only_student():
    last = stages(recipe(method="adda"))[-1]
    assert last.name == "adda"
    assert last.starts_from == {"student": "source_only", "source_only": "source_only"}, "the selected epoch, both"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_its_reference_before_what_is_compared_with_it(name):
    planned = stages(recipe(method=name, train={"warmup_epochs": 2}))
    names = [stage.name for stage in planned]
    assert names[0] == "student warm-up"
    assert planned[names.index("source-only")].starts_from == {"source_only": "student"}
    assert name == "source-only" or any("student" in stage.scores and stage.adapts for stage in planned)
    assert len(set(names)) == len(names), "batches are drawn by the stage's name"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_line_that_fits_beside_its_name(name):
    assert 10 < len(summary(name)) <= 44


def test_a_stage_without_epochs_is_left_out():
    assert [stage.name for stage in stages(recipe(method="uda"))] == ["source-only", "student adaptation"]
    assert "compression warm-up" not in [
        stage.name for stage in stages(recipe(method="cckdn", cckdn={"warmup_epochs": 0}))
    ]


def test_names_of_methods():
    assert method_name("ccmdn") == "cckdn"
    with pytest.raises(InputError, match="unknown method 'uda-kd'; did you mean"):
        method_name("uda-kd")


def test_uda_then_kd_hands_the_selected_teacher_on():
    planned = stages(recipe(method="uda-then-kd"))
    assert planned[-1].starts_from == {"teacher": "teacher"}
    assert planned[-1].trains == ("student",)
    assert "teacher" in planned[-2].scores


def test_kd_then_uda_needs_the_source_to_distil_on():
    with pytest.raises(InputError, match="distil"):
        stages(recipe(method="kd-then-uda", distill={"domains": ["target"]}))


def test_only_methods_that_align_look_at_the_alignment():
    wrong = {"alignment": ["mmdd"]}
    for name in ("source-only", "adda", "cckdn"):
        stages(recipe(method=name, adapt=wrong))
    with pytest.raises(InputError, match="unknown alignment 'mmdd'"):
        stages(recipe(method="uda", adapt=wrong))


def test_a_module_outlives_its_stage_and_has_random_numbers_of_its_own():
    made = []
    for drawn in (0, 3):
        shop = workshop(recipe())
        torch.rand(drawn)
        made.append(shop.module("head", lambda: torch.nn.Linear(3, 3)))
        assert shop.module("head", lambda: pytest.fail("built twice")) is made[-1]
        other = shop.module("other", lambda: torch.nn.Linear(3, 3))
        assert not torch.equal(other.weight, made[-1].weight)
    assert torch.equal(made[0].weight, made[1].weight), "whatever else was drawn before"


def test_a_resumed_module_takes_its_saved_weights_and_unused_ones_are_kept():
    shop = workshop(recipe())
    saved = {"head": torch.nn.Linear(3, 3).state_dict(), "earlier": torch.nn.Linear(2, 2).state_dict()}
    shop.saved_modules.update(saved)
    head = shop.module("head", lambda: torch.nn.Linear(3, 3))
    assert torch.equal(head.weight, saved["head"]["weight"])
    assert set(shop.module_states()) == {"head", "earlier"}


def only_source(data: Batch, seed: int) -> Batch:
    return Batch(data.source_images, data.source_labels, batch(seed).target_images)


def test_source_distillation_never_looks_at_the_target():
    students = []
    for seed in (1, 2):
        shop = workshop(recipe(distill={"domains": ["source"]}))
        Distill(shop, ("source",)).step(only_source(batch(), seed), 0.5)
        students.append(weights(shop, "student"))
    assert not changed(*students)
