"""Tiny networks on a workshop, and one plain step of gradient descent: what tests of methods are made of."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from edgeda.data.batches import Batch
from edgeda.methods.base import Workshop
from edgeda.models import Architecture, Network, build_network
from edgeda.recipe import Recipe

CLASSES = 3


def recipe(**changes) -> Recipe:
    network = {"backbone": "test_resnet", "pretrained": "none", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0,
               "lr_schedule": "constant", "head_lr_multiplier": 1.0}  # fmt: skip
    values = {
        "teacher": network, "student": network, "data": {"source": "s", "target": "t"},
        "adapt": {"gamma_on": "alignment", **changes.pop("adapt", {})},
        "distill": {"tau": 4.0, "alpha": 0.8, **changes.pop("distill", {})},
    }  # fmt: skip
    return Recipe.model_validate({**values, **changes})


def batch(seed: int = 0, count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2 * count, 3, 32, 32, generator=generator)
    return Batch(images[:count], torch.arange(count) % CLASSES, images[count:] + 0.5)


def workshop(of: Recipe, roles: tuple[str, ...] = ("teacher", "student"), backbone: str = "test_resnet") -> Workshop:
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    networks = {role: build_network(Architecture(backbone, CLASSES))[0].train() for role in roles}
    return Workshop(fabric, of, {role: fabric.setup_module(network) for role, network in networks.items()})


def weights(shop: Workshop, role: str) -> dict[str, torch.Tensor]:
    network = shop.networks[role].module
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def descend(network: Network, loss: torch.Tensor) -> None:
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.1 * gradient


class Attention(nn.Module):
    """Images `(B, 3, H, W)` to tokens `(B, H / 2 * W / 2, 4)` that attend to each other, for profiles to count."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Conv2d(3, 4, 2, 2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.queries(images).flatten(2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
