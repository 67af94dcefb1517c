"""Method `tcp`: what a round does, when channels go, and that scoring moves no parameter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from edgeda.data.batches import Batch
from edgeda.errors import InputError
from edgeda.losses.mmd import mmd
from edgeda.methods import stages
from edgeda.methods.base import Workshop, plain_network
from edgeda.methods.tcp import Prune, check_pruning
from edgeda.methods.uda import Uda
from edgeda.models import Architecture, Network, build_network
from edgeda.profiling.complexity import torch_complexity
from edgeda.pruning import ChannelScores, prunable
from edgeda.recipe import Recipe

CLASSES, SIZE, NETWORK = 3, 32, "test_resnet"


def recipe(**prune: Any) -> Recipe:
    return Recipe.model_validate({
        "method": "tcp",
        "student": {"backbone": NETWORK, "pretrained": "none", "lr": 0.01, "lr_schedule": "cosine"},
        "data": {"source": "s", "target": "t", "input_size": SIZE},
        "train": {"epochs": 3},
        "prune": {"macs_cut": 0.4, "iterations": 2, **prune},
    })  # fmt: skip


def workshop(of: Recipe, precision: Any = "32-true") -> Workshop:
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    network = build_network(Architecture(NETWORK, CLASSES))[0].to(memory_format=torch.channels_last).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # timm's residual branches begin at zero
    return Workshop(fabric, of, {"student": fabric.setup_module(network)})


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, SIZE, SIZE, generator=generator)
    return Batch(images[:4], torch.arange(4) % CLASSES, images[4:] + 0.5)


def student(shop: Workshop) -> Network:
    return plain_network(shop.networks["student"])


def gmacs(shop: Workshop) -> float:
    return torch_complexity(student(shop), SIZE).gmacs


def costs(of: Recipe, steps: int) -> list[float]:
    """GMACs after each of so many steps of the pruning stage, as shares of the dense network's."""
    shop = workshop(of)
    dense, method, found = gmacs(shop), Prune(shop), []
    for step in range(steps):
        method.step(batch(step), step / steps)
        found.append(gmacs(shop) / dense)
    return found


def test_the_cut_grows_evenly_over_the_rounds():
    # two rounds of a scoring and a training epoch, two batches each: S S T T S S T T
    found = costs(recipe(), 8)
    assert found[:2] == [1.0, 1.0]
    assert found[2:6] == [pytest.approx(0.8, abs=0.01)] * 4
    assert found[6:] == [pytest.approx(0.6, abs=0.01)] * 2
    assert found[2] <= 0.8
    assert found[6] <= 0.6


@pytest.mark.parametrize("per_epoch", [1, 6, 10, 14, 22, 31])
def test_rounds_begin_on_time_whatever_the_number_of_batches(per_epoch, monkeypatch):
    """A step's progress is a rounded fraction: no pass may be a batch short or long."""
    did: list[str] = []
    monkeypatch.setattr(Prune, "score", lambda method, images: did.append("score"))
    monkeypatch.setattr(Prune, "prune", lambda method: did.append(f"prune {method.round}"))
    monkeypatch.setattr(Uda, "step", lambda method, images, progress: did.append("train"))
    method = Prune(workshop(recipe(iterations=3, round_epochs=2)))
    total = 3 * 3 * per_epoch
    for step in range(total):
        method.step(batch(0), step / total)
    train = ["train"] * 2 * per_epoch
    assert did == [word for number in (1, 2, 3) for word in (*["score"] * per_epoch, f"prune {number}", *train)]


def test_each_round_has_a_learning_rate_schedule_of_its_own(monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr(Uda, "step", lambda method, images, progress: seen.append(progress))
    method = Prune(workshop(recipe()))
    for step in range(16):
        method.step(batch(step), step / 16)
    assert seen == [pytest.approx(share, abs=1e-6) for share in (0, 0.25, 0.5, 0.75)] * 2


def test_fewer_scoring_steps_leave_the_rest_of_the_pass_to_training():
    found = costs(recipe(score_steps=1), 8)
    assert found[0] == 1.0
    assert found[1:5] == [pytest.approx(0.8, abs=0.01)] * 4
    assert found[5:] == [pytest.approx(0.6, abs=0.01)] * 3


def test_so_many_channels_a_round_as_the_paper_and_the_rest_in_the_last():
    shop = workshop(recipe(channels=32))
    method, widths = Prune(shop), []
    for step in range(8):
        method.step(batch(step), step / 8)
        widths.append(sum(network.out_channels for network in student(shop).modules() if hasattr(network, "groups")))
    assert widths[0] - widths[2] == 32
    assert widths[5] - widths[6] > 32
    assert gmacs(shop) <= 0.6 * method.dense_gmacs


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_scoring_moves_no_parameter(precision):
    shop = workshop(recipe(), precision)
    method = Prune(shop)
    before = {name: value.detach().clone() for name, value in student(shop).named_parameters()}
    terms = method.step(batch(0), 0.0)
    assert {"mmd", "cross_entropy"} <= set(terms)
    assert all(torch.equal(value, before[name]) for name, value in student(shop).named_parameters())
    assert all(parameter.grad is None for parameter in student(shop).parameters())
    assert all(float(sums.abs().sum()) > 0 for sums in method.scores.sums.values())


def test_the_loss_scored_is_classification_and_the_whole_alignment():
    """gamma is at its end: the network is adapted already."""
    shop = workshop(recipe())
    method, data = Prune(shop), batch(0)
    twin = copy.deepcopy(student(shop))
    reference = ChannelScores(twin, prunable(twin))
    method.step(data, 0.0)
    with reference.recording():
        features, logits = twin(torch.cat([data.source_images, data.target_images]))
        loss = torch.nn.functional.cross_entropy(logits[:4], data.source_labels) + mmd(features[:4], features[4:])
        reference.add(loss, 4)
    for name, sums in reference.sums.items():
        assert sums.min() >= 0
        assert sums.max() > 0
        assert torch.allclose(method.scores.sums[name], sums, rtol=1e-2, atol=1e-6), name


def test_momentum_is_kept_through_a_round_of_pruning():
    shop = workshop(recipe())
    method = Prune(shop)
    for step in range(8):
        method.step(batch(step), step / 8)
        if step == 3:
            state = method.learners["student"].optimizer.optimizer.state
            before = {name: state[value]["momentum_buffer"] for name, value in student(shop).named_parameters()}
            shapes = {name: value.shape for name, value in before.items()}
    optimizer = method.learners["student"].optimizer.optimizer
    for name, value in student(shop).named_parameters():
        assert optimizer.state[value]["momentum_buffer"].shape == value.shape, name
    narrowed = [name for name, value in student(shop).named_parameters() if value.shape != shapes[name]]
    assert narrowed, "the second round removed channels from layers that had momentum"


def test_a_method_continues_exactly_from_its_state():
    """In the middle of a scoring pass, and of the fine-tuning after it."""
    for stop in (1, 3, 5, 7):
        shop = workshop(of := recipe())
        method = Prune(shop)
        for step in range(stop):
            method.step(batch(step), step / 8)
        saved, shapes = copy.deepcopy(method.state()), student(shop).architecture
        weights = copy.deepcopy(student(shop).state_dict())
        for step in range(stop, 8):
            method.step(batch(step), step / 8)

        fabric = Fabric(accelerator="cpu", devices=1)
        network = build_network(shapes)[0].to(memory_format=torch.channels_last)
        network.load_state_dict(weights)
        resumed = Workshop(fabric, of, {"student": fabric.setup_module(network.train())})
        again = Prune(resumed)
        again.load_state(saved)
        for step in range(stop, 8):
            again.step(batch(step), step / 8)
        assert network.architecture == student(shop).architecture
        for name, value in student(shop).state_dict().items():
            assert torch.equal(network.state_dict()[name], value), f"stopped at {stop}: {name}"


def test_the_stages_of_a_run():
    planned = stages(recipe(round_epochs=4))
    assert [(stage.name, stage.epochs) for stage in planned] == [
        ("source-only", 3),
        ("student adaptation", 3),
        ("tcp pruning", 10),
        ("tcp fine-tuning", 3),
    ]
    unscored, final = planned[-2:]
    assert (unscored.scores, final.scores) == ((), ("student",)), "an epoch before the last size cannot be selected"
    given = stages(recipe(run="runs/some"))
    assert [(stage.name, stage.epochs) for stage in given[:2]] == [("source-only", 0), ("tcp pruning", 4)]
    assert not given[0].trains


def test_a_cut_that_cannot_be_met_is_refused_before_training():
    network = build_network(Architecture(NETWORK, CLASSES))[0]
    check_pruning(recipe(macs_cut=0.6), network)
    with pytest.raises(InputError, match=r"cut less, or lower prune\.minimum"):
        check_pruning(recipe(macs_cut=0.6, minimum=30), network)
