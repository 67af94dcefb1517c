"""Transfer channel pruning (TCP): which channels matter least for both domains, and removing them up to a cost.

Yu, Wang, Chen, Wu, "Accelerating Deep Unsupervised Domain Adaptation with Transfer Channel Pruning", IJCNN 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeda.channels import Coupling, Kept, couplings, narrow, output_pixels, widths
from edgeda.distributed.group import Group
from edgeda.errors import Diverged, InputError
from edgeda.models import Network
from edgeda.profiling.complexity import torch_complexity

MINIMUM = 8
"""Channels that every layer keeps unless told otherwise: what one vector instruction computes at once."""

Scores = Mapping[str, Tensor]
"""By name of a convolution: a score for each output channel `(C,)`, on the CPU; the smallest go first."""


def prunable(network: Network) -> dict[str, Coupling]:
    """By name, the convolutions of a network that may be pruned; InputError when its backbone has none."""
    return couplings(network, network.architecture.backbone)


class ChannelScores:
    """TCP's criterion, accumulated over batches.

    For channel c of a feature map a (B, C, H, W) and a loss L, the first-order change of L when the
    channel is removed is Theta_c = |mean over batch and space of a * dL/da|, taken for source and
    target images apart and summed over batches; within a layer the sums of a domain are divided by
    their L2 norm, and the score is the smaller of the two domains'.

    The feature map is the one that the next convolution reads, after BatchNorm and ReLU: removing
    a channel takes away exactly that, whereas a zero before BatchNorm would leave its bias behind.
    """

    def __init__(self, network: nn.Module, found: Mapping[str, Coupling], group: Group | None = None) -> None:
        self._network, self._found, self._group = network, dict(found), group or Group()
        device = next(network.parameters()).device
        self.sums = {
            conv: torch.zeros(2, width, dtype=torch.float64, device=device)
            for conv, width in widths(network, found).items()
        }
        """By convolution: the sums of source and target `(2, C)`."""
        self._taken: dict[str, list[Tensor]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While it lasts, forwards of the network are remembered for `add`; nothing stays behind."""
        self._taken = {conv: [] for conv in self._found}
        hooks = [
            self._network.get_submodule(coupling.consumer).register_forward_pre_hook(_remember(self._taken[conv]))
            for conv, coupling in self._found.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._taken = {}

    def add(self, loss: Tensor, source_images: int) -> None:
        """Account for a batch: a scalar `loss` of the forwards recorded, whose first `source_images` rows are source.

        One forward of both domains or one each, source first. Gradients of parameters are not touched.
        """
        flat = [activation for taken in self._taken.values() for activation in taken]
        gradients = iter(torch.autograd.grad(loss, flat))
        for conv, taken in self._taken.items():
            products = torch.cat([_means(activation.detach(), next(gradients)) for activation in taken])
            means = torch.stack([products[:source_images].mean(dim=0), products[source_images:].mean(dim=0)])
            self.sums[conv] += (self._group.mean(means) / self._group.size).abs()  # gradients of whole rows are larger

    def scores(self) -> dict[str, Tensor]:
        """The smaller of both domains' normalized sums, `(C,)` for every convolution; Diverged if one is not finite."""
        if not all(bool(torch.isfinite(sums).all()) for sums in self.sums.values()):
            raise Diverged("the scores of channels are not finite")
        return {conv: nn.functional.normalize(sums, dim=1).amin(dim=0).cpu() for conv, sums in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        return dict(self.sums)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for conv, sums in self.sums.items():
            sums.copy_(state[conv])


def _remember(into: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        into.append(args[0])

    return hook


def _means(activation: Tensor, gradient: Tensor) -> Tensor:
    """The mean over space of activation times gradient: `(B, C)` of `(B, C, H, W)`, float64."""
    return (activation.double() * gradient.double()).mean(dim=(2, 3))


@dataclass(frozen=True)
class Pruned:
    """What `prune_to` did: indices kept by convolution (only where some went), channels removed, GMACs left."""

    kept: Kept
    removed: int
    gmacs: float


def prune_to(
    network: Network, scores: Scores, gmacs: float, input_size: int, minimum: int = MINIMUM, most: int | None = None
) -> Pruned:
    """Remove the lowest-scoring channels of the whole network until it takes `gmacs` or less for an image, in place.

    GMACs are those of `torch_complexity` at `input_size` pixels. No layer goes under `minimum` channels; at
    most `most` channels go. InputError, with nothing changed, when the target cannot be reached.
    """
    found = prunable(network)
    cost = _Cost(network, found, input_size)
    target = gmacs * 1e9
    reachable = cost.reachable(minimum)
    if reachable > target:
        raise InputError(unreachable(network.architecture.backbone, gmacs, cost.total, reachable, minimum))
    position = {conv: at for at, conv in enumerate(found)}
    order = sorted(
        (score, position[conv], channel, conv)
        for conv, values in scores.items()
        for channel, score in enumerate(values.tolist())
    )
    gone: dict[str, set[int]] = {}
    removed = 0
    for _, _, channel, conv in order:
        if cost.total <= target or removed == most:
            break
        if cost.widths[conv] > minimum:
            cost.remove(conv)
            gone.setdefault(conv, set()).add(channel)
            removed += 1
    kept = {
        conv: torch.tensor([channel for channel in range(len(scores[conv])) if channel not in channels])
        for conv, channels in gone.items()
    }
    narrow(network, found, kept)
    if kept:
        narrowed = {**network.architecture.channels, **{conv: len(indices) for conv, indices in kept.items()}}
        network.architecture = replace(network.architecture, channels=narrowed)
    return Pruned(kept, removed, cost.total / 1e9)


def check_target(network: Network, cut: float, input_size: int, minimum: int) -> float:
    """The GMACs that a `cut` in (0, 1) of the network's leaves; InputError when `minimum` does not allow it."""
    cost = _Cost(network, prunable(network), input_size)
    target, reachable = cost.total * (1 - cut), cost.reachable(minimum)
    if reachable > target:
        raise InputError(unreachable(network.architecture.backbone, target / 1e9, cost.total, reachable, minimum))
    return target / 1e9


def largest_cut(network: Network, input_size: int, minimum: int = MINIMUM) -> float:
    """The largest share of the network's GMACs that can go while every layer keeps `minimum` channels."""
    cost = _Cost(network, prunable(network), input_size)
    return 1 - (cost.reachable(minimum) + 1) / cost.total  # one more: shares are rounded


def unreachable(name: str, gmacs: float, dense: int, reachable: int, minimum: int) -> str:
    """The line that says what can be had instead; `dense` and `reachable` are MACs."""
    asked, most = 1 - gmacs * 1e9 / dense, math.floor(1000 * (1 - reachable / dense)) / 1000
    return (
        f"{name} cannot be pruned to {gmacs:.4g} GMACs (a cut of {asked:.1%}): with {minimum} channels in every layer "
        f"{reachable / 1e9:.4g} of {dense / 1e9:.4g} remain, a cut of {most:.1%}; cut less, or lower prune.minimum"
    )


class _Cost:
    """Multiply-accumulates of a network as its prunable layers shrink: counted once, then by arithmetic.

    A channel costs its own convolution, its BatchNorm (2 a value, as fvcore counts it) and its share
    of the convolution that reads it.
    """

    def __init__(self, network: nn.Module, found: Mapping[str, Coupling], input_size: int) -> None:
        self.total = round(torch_complexity(network, input_size).gmacs * 1e9)
        self.widths = widths(network, found)
        self._found = found
        self._produced_by = {coupling.consumer: conv for conv, coupling in found.items()}
        self._convs = {
            name: network.get_submodule(name)
            for coupling in found.values()
            for name in (coupling.conv, coupling.consumer)
        }
        self._pixels = output_pixels(network, input_size)

    def remove(self, conv: str) -> None:
        """Take one output channel of `conv` away."""
        self.total -= self._channel(conv)
        self.widths[conv] -= 1

    def reachable(self, minimum: int) -> int:
        """What is left when every layer is as narrow as `minimum` allows; the state stays as it is."""
        total, dense = self.total, dict(self.widths)
        for conv, width in dense.items():
            for _ in range(width - minimum):
                self.remove(conv)
        least, self.total, self.widths = self.total, total, dense
        return least

    def _channel(self, conv: str) -> int:
        coupling = self._found[conv]
        own = self._pixels[conv] * (self._kernel(conv) * self._inputs(conv) + 2 * len(coupling.norms))
        read = self._pixels[coupling.consumer] * self._kernel(coupling.consumer) * self._outputs(coupling.consumer)
        return own + read

    def _kernel(self, conv: str) -> int:
        height, width = self._module(conv).kernel_size[:2]
        return height * width

    def _inputs(self, conv: str) -> int:
        producer = self._produced_by.get(conv)
        return self.widths[producer] if producer else self._module(conv).in_channels

    def _outputs(self, conv: str) -> int:
        return self.widths.get(conv, self._module(conv).out_channels)

    def _module(self, conv: str) -> nn.Conv2d:
        module = self._convs[conv]
        assert isinstance(module, nn.Conv2d)
        return module
