"""CCKDN: who gets which gradient, each term against its equation, and backbones without the taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeda.errors import InputError
from edgeda.methods.cckdn import CckdnAdapter, Compressor, Taps, _statistics
from edgeda.methods.cckdn_networks import Compression, Reconstruction, Transform, discriminator, gradient_penalty
from edgeda.methods.kd_uda import KdUda
from edgeda.methods.learner import descend
from edgeda.methods.uda import Uda
from edgeda.models import Architecture, build_network
from tests.workshop import batch, changed, recipe, weights, workshop

OFF = {"distillation": 0.0, "reconstruction": 0.0, "adversarial": 0.0, "classification": 1e-9, "width": 4}


def moved(**weight: float) -> dict[str, bool]:
    """Which networks a step moves when only the given terms have a weight."""
    shop = workshop(recipe(cckdn={**OFF, **weight}), ("student",))
    method = Uda(shop, "student", "cckdn")
    names = {"compression": "cckdn compression", "reconstruction": "cckdn reconstruction",
             "transforms": "cckdn transforms of student", "discriminator": "cckdn discriminator"}  # fmt: skip
    before = {key: {n: p.detach().clone() for n, p in shop.modules[name].named_parameters()}
              for key, name in names.items()}  # fmt: skip
    network = weights(shop, "student")
    adapted = method.adapter.adapt(batch(), 0.5)
    over = method.adapter.recipe.classification  # the loss is divided by it
    descend(adapted.loss * over, 0.5, *method.adapter.learners.values())
    found = {key: changed(before[key], dict(shop.modules[name].named_parameters())) for key, name in names.items()}
    after = weights(shop, "student")
    found["features"] = any((network[n] - p).abs().max() > 1e-7 for n, p in after.items() if "layer" in n)
    found["head"] = (network["head.weight"] - after["head.weight"]).abs().max().item() > 1e-7
    return found


def test_each_network_gets_the_gradients_the_paper_means():
    """Cl: CE, DL, Ad. FTM: DL, Ad. Re: Re, Ad. Co: Re alone. D learns whatever the others do."""
    nothing = {"compression": False, "reconstruction": False, "transforms": False, "features": False, "head": False,
               "discriminator": True}  # fmt: skip
    assert moved() == nothing
    assert moved(distillation=1.0) == {**nothing, "transforms": True, "features": True}
    assert moved(reconstruction=1.0) == {**nothing, "compression": True, "reconstruction": True}
    assert moved(classification=1.0) == {**nothing, "features": True, "head": True}
    assert moved(adversarial=1.0) == {**nothing, "reconstruction": True, "transforms": True, "features": True}


def test_the_loss_is_eq_8_over_lambda_3():
    shop = workshop(recipe(cckdn={"width": 4}), ("student",))
    loss, terms, source, target = CckdnAdapter(shop, "student").adapt(batch(), 0.5)
    distances = sum(terms[f"distillation_{level}"] for level in ("low", "medium", "high"))
    expected = distances + 0.1 * terms["reconstruction"] + terms["adversarial"] + 10 * terms["cross_entropy"]
    assert loss.item() == pytest.approx(expected.item() / 10, rel=1e-6)
    assert terms["cross_entropy"].item() == pytest.approx(F.cross_entropy(source.logits, batch().source_labels).item())
    assert target is None


def test_reconstruction_is_compared_with_images_between_minus_one_and_one():
    """Normalization is undone first: an image of mean colour is -1 + 2 * mean, whatever mean and std the recipe has."""
    shop = workshop(recipe(data={"source": "s", "target": "t", "mean": [0.5, 0.25, 0.75], "std": [0.2, 0.3, 0.4]}))
    compressor = Compressor(shop, "student")
    compressor.rebuild = lambda features, like: torch.zeros_like(like)
    _, _, loss = compressor.compress(torch.zeros(2, 3, 32, 32))
    assert loss.item() == pytest.approx((0.0**2 + 0.5**2 + 0.5**2) / 3, rel=1e-5)


def test_the_discriminator_learns_by_the_hinge_before_the_others_step():
    shop = workshop(recipe(cckdn={"width": 4}), ("student",))
    adapter = CckdnAdapter(shop, "student")
    adapter.critic = nn.Flatten()
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [1.0]])
    # mean(relu(1 - real)) + mean(relu(1 + fake)) = (0 + 0.5) / 2 + (0 + 2) / 2
    assert adapter._critic_loss(real, fake).item() == pytest.approx(1.25)


def test_gradient_penalty_of_a_linear_critic():
    """D(x) = 3 x_1 + 4 x_2 has a gradient of norm 5 everywhere: the penalty is (5 - 1)^2."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        critic[1].weight.copy_(torch.tensor([[3.0, 4.0]]))
    images = torch.randn(6, 2, 1, 1)
    assert gradient_penalty(critic, images, images + 1, torch.rand(6, 1, 1, 1)).item() == pytest.approx(16.0, rel=1e-5)


def test_gradient_penalty_does_not_depend_on_the_number_of_patches():
    """A critic of one weight w sees each pixel as a patch: D is w times the mean of n, of gradient w / sqrt(n)."""
    for size, slope in ((2, 2.0), (4, 4.0)):  # n = 4, 16: both of norm 1
        critic = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(critic.weight, slope)
        images = torch.randn(3, 1, size, size)
        penalty = gradient_penalty(critic, images, images + 1, torch.rand(3, 1, 1, 1))
        assert penalty.item() == pytest.approx(0.0, abs=1e-10)


def test_wgan_gp_is_a_choice():
    shop = workshop(recipe(cckdn={"width": 4, "critic": "wgan-gp"}), ("student",))
    method = Uda(shop, "student", "cckdn")
    assert not any("parametrizations" in name for name, _ in method.adapter.critic.named_parameters())
    assert all(torch.isfinite(term) for term in method.step(batch(), 0.5).values())


def test_spectral_norm_bounds_each_layer():
    critic = discriminator(normalized=True, width=4)
    images = torch.randn(2, 3, 16, 16)
    for _ in range(30):
        scores = critic(images)  # power iterations
    assert scores.shape == (2, 1, 2, 2)
    weight = critic[0].weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1.0, abs=0.02)


def test_matching_statistics_ignores_where_things_are():
    features = torch.randn(2, 3, 4, 4)
    shuffled = features.flatten(2)[:, :, torch.randperm(16)].view_as(features)
    assert torch.allclose(_statistics(features), _statistics(shuffled), atol=1e-6)
    expected = torch.tensor([1.5, 2.0])
    found = _statistics(torch.tensor([[[[0.0, 3.0], [0.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]]]))
    assert torch.allclose(found[0, :2], expected)
    assert torch.allclose(found[0, 2:], torch.tensor([1.5, 0.0]), atol=4e-3)


@pytest.mark.parametrize(("size", "backbone"), [(32, "resnet10t"), (40, "resnet18"), (64, "resnet26")])
def test_shapes_meet_whatever_the_size(size, backbone):
    network, _ = build_network(Architecture(backbone, 3))
    taps = Taps(network)
    _, features = taps.run(network.eval(), torch.randn(2, 3, size, size))
    wanted = Compression((4, 8, 32), (4, 8, 16))(torch.randn(2, 3, size, size))
    for channels, ours, theirs in zip(taps.channels, features, wanted, strict=True):
        assert ours.shape[1] == channels
        moved = Transform(channels, theirs.shape[1])(ours, theirs.shape[2:])
        assert moved.shape == theirs.shape
    rebuilt = Reconstruction(16, 32)(wanted[-1], (size, size))
    assert rebuilt.shape == (2, 3, size, size)
    assert rebuilt.abs().max() <= 1


def test_hooks_are_gone_after_a_forward():
    network, _ = build_network(Architecture("resnet10t", 3))
    Taps(network).run(network.eval(), torch.randn(1, 3, 32, 32))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_backbone_without_the_taps_is_refused():
    network, _ = build_network(Architecture("vit_tiny_patch16_224", 3))
    with pytest.raises(InputError, match="cckdn needs features at strides 4, 8 and 32; vit_tiny"):
        Taps(network)


def test_the_teacher_of_kd_uda_adapts_by_cckdn():
    shop = workshop(recipe(adapt={"technique": "cckdn"}, cckdn={"width": 4}))
    before = {role: weights(shop, role) for role in ("teacher", "student")}
    terms = KdUda(shop).step(batch(), 0.5)
    assert {"distillation_high", "critic", "target_kd", "source_kd"} <= set(terms)
    assert all(changed(before[role], weights(shop, role)) for role in before)
    assert all(torch.isfinite(term) for term in terms.values())


def test_compression_learns_to_rebuild_the_target():
    shop = workshop(recipe(cckdn={"width": 8, "lr": 2e-3}), ("student",))
    compressor, data = Compressor(shop, "student"), batch()
    losses = []
    for _ in range(30):
        _, _, loss = compressor.compress(data.target_images.clamp(-1, 1) * 0.2)
        descend(loss, 0.0, *compressor.learners.values())
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
