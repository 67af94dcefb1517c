"""CCKDN: cross-domain cross-task knowledge distillation (Ma, Wang, Zi, Zhang, 2023; CCMDN in its tables).

A compression network Co and a reconstruction network Re learn to compress target images; the classification network
Cl learns source labels while its source features, through transforms FTM, imitate Co's target features, and Re turns
them into images that a discriminator D cannot tell from reconstructed target images.

    L = L_DL + lambda_1 L_Re + lambda_2 L_Ad + lambda_3 L_Cl     (eq. 8; the paper prints lambda_1 three times)

Where the paper is silent or contradicts itself, docs/methods.md says what is built.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeda.data.batches import Batch
from edgeda.errors import InputError
from edgeda.methods.adapter import Adapted, Adapter
from edgeda.methods.base import Method, Stage, Terms, Workshop, detached, plain_network
from edgeda.methods.cckdn_networks import Compression, Reconstruction, Transform, discriminator, gradient_penalty
from edgeda.methods.learner import Learner, descend
from edgeda.models import Network, Output
from edgeda.recipe import Recipe

STRIDES = (4, 8, 32)
"""Of the low, medium and high taps: layer1, layer2 and layer4 of a ResNet."""
PENALTY = 10.0


class Taps:
    """Features of a network at STRIDES, caught by forward hooks; InputError for a backbone that has none there."""

    def __init__(self, network: Network) -> None:
        info = getattr(network.backbone, "feature_info", None)
        found = {entry["reduction"]: entry for entry in (info or [])}
        modules = dict(network.backbone.named_modules())
        missing = [s for s in STRIDES if s not in found or found[s]["module"] not in modules]
        if missing:
            raise InputError(
                f"cckdn needs features at strides 4, 8 and 32; {network.architecture.backbone} has none at "
                f"{', '.join(map(str, missing))}: choose a ResNet"
            )
        self.channels = [int(found[stride]["num_chs"]) for stride in STRIDES]
        self._modules = [modules[found[stride]["module"]] for stride in STRIDES]

    def run(self, network: nn.Module, images: Tensor) -> tuple[Output, list[Tensor]]:
        """The network's output, and its features at each tap."""
        caught: dict[int, Tensor] = {}

        def catch(index: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                caught[index] = output

            return hook

        handles = [module.register_forward_hook(catch(index)) for index, module in enumerate(self._modules)]
        try:
            output = network(images)
        finally:
            for handle in handles:
                handle.remove()
        return output, [caught[index].float() for index in range(len(handles))]


class Compressor:
    """Co and Re with their learners; they live in the workshop, whichever network is adapted.

    `role`: that network, whose schedule they follow.
    """

    def __init__(self, workshop: Workshop, role: str) -> None:
        recipe, data = workshop.recipe.cckdn, workshop.recipe.data
        self.widths = [recipe.width, 2 * recipe.width, 4 * recipe.width]
        self.compression = workshop.module("cckdn compression", lambda: Compression(STRIDES, self.widths), True)
        self.reconstruction = workshop.module(
            "cckdn reconstruction", lambda: Reconstruction(self.widths[-1], STRIDES[-1]), True
        )
        device = workshop.fabric.device
        self._mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)
        self.learners = {
            name: workshop.adam(role, module.parameters(), recipe.lr)
            for name, module in (("compression", self.compression), ("reconstruction", self.reconstruction))
        }

    def compress(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Features of target images, the images reconstructed from them, and L_Re (eq. 5), a mean over pixels."""
        wanted = (images * self._std + self._mean) * 2 - 1
        features = self.compression(images)
        rebuilt = self.rebuild(features[-1], images)
        return features, rebuilt, F.mse_loss(rebuilt, wanted)

    def rebuild(self, features: Tensor, like: Tensor) -> Tensor:
        """Re(features): images in [-1, 1] of the size of `like`."""
        rebuilt: Tensor = self.reconstruction(features, (like.shape[2], like.shape[3]))
        return rebuilt


class CompressionWarmUp(Method):
    """Co and Re learn to compress and rebuild target images, before anything is distilled from them."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop)
        self.compressor = Compressor(workshop, "student")
        self.learners = self.compressor.learners

    def step(self, batch: Batch, progress: float) -> Terms:
        """L_Re (eq. 5)."""
        _, _, loss = self.compressor.compress(batch.target_images)
        descend(loss, progress, *self.learners.values(), terms={"reconstruction": loss})
        return detached({"reconstruction": loss})


class CckdnAdapter(Adapter):
    """Cl gets cross-entropy, L_DL and L_Ad; FTM L_DL and L_Ad; Re L_Re and L_Ad; Co L_Re alone.

    On several devices all but the cross-entropy are means over a process's own images: their mean is the whole batch's.
    """

    def __init__(self, workshop: Workshop, role: str) -> None:
        super().__init__(workshop, role)
        self.recipe = recipe = workshop.recipe.cckdn
        self.compressor = Compressor(workshop, role)
        network = plain_network(workshop.networks[role])
        self.taps = Taps(network)
        pairs = list(zip(self.taps.channels, self.compressor.widths, strict=True))
        transforms = workshop.module(
            f"cckdn transforms of {role}", lambda: nn.ModuleList(Transform(*pair) for pair in pairs), True
        )
        assert isinstance(transforms, nn.ModuleList)
        self.transforms = transforms
        self.critic = workshop.module("cckdn discriminator", lambda: discriminator(recipe.critic == "hinge"), True)
        own = workshop.adam(role, network.parameters(), recipe.network_lr) if recipe.network_lr else None
        self.learners: dict[str, Learner] = {
            role: own or workshop.learner(role),
            "transforms": workshop.adam(role, self.transforms.parameters(), recipe.lr),
            **self.compressor.learners,
        }
        self.adversaries = {"critic": workshop.adam(role, self.critic.parameters(), recipe.lr)}

    @classmethod
    def preparation(cls, recipe: Recipe) -> list[Stage]:
        """Co and Re warm up, unless the recipe says jointly."""
        return [Stage("compression warm-up", recipe.cckdn.warmup_epochs, CompressionWarmUp, adapts=True)]

    def adapt(self, batch: Batch, progress: float) -> Adapted:
        """Eq. 8 over lambda_3. The discriminator steps first; the generators do not lower its score of real images."""
        recipe = self.recipe
        target_features, real, reconstruction = self.compressor.compress(batch.target_images)
        output, taps = self.taps.run(self.workshop.networks[self.role], batch.source_images)
        output = self.workshop.whole(output)
        moved = [
            transform(tap, (wanted.shape[2], wanted.shape[3]))
            for transform, tap, wanted in zip(self.transforms, taps, target_features, strict=True)
        ]
        fake = self.compressor.rebuild(moved[-1], batch.source_images)

        critic = self._critic_loss(real.detach(), fake.detach())
        descend(critic, progress, *self.adversaries.values(), terms={"critic": critic})

        distances = [self._distance(ours, wanted.detach()) for ours, wanted in zip(moved, target_features, strict=True)]
        terms = {
            **dict(zip(("distillation_low", "distillation_medium", "distillation_high"), distances, strict=True)),
            "reconstruction": reconstruction,
            "adversarial": -self.critic(fake).mean(),
            "cross_entropy": F.cross_entropy(output.logits, batch.source_labels),
        }
        loss = (
            recipe.distillation * torch.stack(distances).sum()
            + recipe.reconstruction * reconstruction
            + recipe.adversarial * terms["adversarial"]
            + recipe.classification * terms["cross_entropy"]
        ) / recipe.classification
        return Adapted(loss, {**terms, "critic": critic}, output, None)

    def _distance(self, ours: Tensor, wanted: Tensor) -> Tensor:
        """L_DL of one tap (eqs. 1-3), a mean over elements; the pairs of a batch are random."""
        if self.recipe.match == "elements":
            return F.mse_loss(ours, wanted)
        return F.mse_loss(_statistics(ours), _statistics(wanted))

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        scores_real, scores_fake = self.critic(real), self.critic(fake)
        if self.recipe.critic == "hinge":
            return F.relu(1 - scores_real).mean() + F.relu(1 + scores_fake).mean()
        wasserstein: Tensor = scores_fake.mean() - scores_real.mean()
        group = self.workshop.group
        share = group.own(torch.rand(len(real) * group.size, 1, 1, 1, device=real.device))
        return wasserstein + PENALTY * gradient_penalty(self.critic, real, fake, share)


def _statistics(features: Tensor) -> Tensor:
    """Channel means and standard deviations of each image: `(B, C, H, W)` to `(B, 2 C)`."""
    return torch.cat([features.mean((2, 3)), (features.var((2, 3), unbiased=False) + 1e-5).sqrt()], dim=1)
