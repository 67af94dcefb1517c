"""Quantization-aware distillation: the adapted teacher teaches the student while its layers compute as int8 will."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeda.data.augment import prepare
from edgeda.errors import Diverged, InputError
from edgeda.export.calibration import Range, Ranges
from edgeda.export.qdq import Layer, Scheme
from edgeda.losses.distillation import distillation_kl
from edgeda.models import Network
from edgeda.recipe import AugmentRecipe
from edgeda.runtime.preprocessing import Pixels, Preprocessing

log = logging.getLogger(__name__)

RATE = 1e-4
"""Adam's first learning rate; it falls to zero as a half cosine."""
BATCH = 32
JUDGED = 512
"""Target images that the epochs are compared on."""


class ActivationFakeQuantize(nn.Module):
    """Rounds a tensor to the integers of a scheme and back; the scale learns (LSQ, Esser et al., ICLR 2020).

    y = s (round(clip(x / s + z, low, high)) - z), straight through the rounding; z is fixed.
    """

    def __init__(self, scheme: Scheme, found: Range) -> None:
        super().__init__()
        scale, zero = scheme.parameters(*found)
        self.low, self.high = (0, 255) if scheme.unsigned else (-128, 127)
        self.zero = int(zero)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, values: Tensor) -> Tensor:
        """The same shape."""
        slow = 1.0 / (values.numel() * self.high) ** 0.5
        size = self.scale.abs().clamp_min(1e-12)
        scale = size * slow + (size * (1 - slow)).detach()
        inside = torch.clamp(values / scale + self.zero, self.low, self.high)
        rounded: Tensor = inside + (inside.round() - inside).detach()
        held: Tensor = (rounded - self.zero) * scale
        return held

    @property
    def range(self) -> Range:
        """What the integers reach, as values."""
        size = float(self.scale.detach().abs().clamp_min(1e-12))
        lowest = self.low if self.low == 0 else -self.high
        return (lowest - self.zero) * size, (self.high - self.zero) * size


class WeightFakeQuantize(nn.Module):
    """Rounds a weight to +-127 steps of each output channel's largest magnitude, straight through.

    A BatchNorm folded in later scales channels and steps alike, so it changes nothing here.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """The same shape; output channels first."""
        scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12) / 127
        scale = scale.view(-1, *[1] * (weight.dim() - 1))
        rounded: Tensor = torch.round(weight / scale) * scale
        return weight + (rounded - weight).detach()


def distil_quantized(
    student: Network, teacher: Network, squares: Pixels, preprocessing: Preprocessing, layers: Sequence[Layer],
    ranges: Ranges, scheme: Scheme, *, epochs: int, tau: float, augment: AugmentRecipe, seed: int = 0,
    rate: float = RATE,
) -> tuple[Network, dict[str, Range]]:  # fmt: skip
    """A copy of `student` taught by `teacher` on unlabelled `squares` `(N, S, S, 3)`, and the ranges it learned.

    Minimizes tau**2 KL(teacher || student) with every layer of `layers` in fake int8; BatchNorm statistics stay as they
    are. Of all epochs, and the start, that of least KL on the images as they are is returned. Raises Diverged, and
    InputError when a layer of the graph is not a module of the network.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = copy.deepcopy(student).to(device).eval()
    teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    judged = np.unique(np.linspace(0, len(squares) - 1, min(JUDGED, len(squares))).astype(int))
    with fake_quantized(student, layers, ranges, scheme, device) as quantizers:
        student.requires_grad_(True)
        trained = nn.ModuleList([student, *quantizers.values()])
        optimizer = torch.optim.Adam(trained.parameters(), lr=rate)
        steps = epochs * -(-len(squares) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, kept = _loss(student, teacher, squares[judged], preprocessing, tau), copy.deepcopy(trained.state_dict())
        for epoch in range(1, epochs + 1):
            order = torch.randperm(len(squares), generator=random).numpy()
            for start in range(0, len(squares), BATCH):
                batch = torch.from_numpy(squares[order[start : start + BATCH]]).to(device)
                images = prepare(batch, preprocessing, augment, random)
                with torch.no_grad():
                    wanted = teacher(images).logits
                loss = distillation_kl(student(images).logits, wanted, tau)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            found = _loss(student, teacher, squares[judged], preprocessing, tau)
            if not np.isfinite(found):
                raise Diverged(f"quantization-aware distillation diverged in epoch {epoch}; use fewer --qat epochs")
            log.info("quantization-aware epoch %d/%d: KL to the teacher %.4f", epoch, epochs, found)
            if found < best:
                best, kept = found, copy.deepcopy(trained.state_dict())
        trained.load_state_dict(kept)
        learned = {tensor: quantizer.range for tensor, quantizer in quantizers.items()}
    return student.cpu().requires_grad_(True), learned


@contextmanager
def fake_quantized(
    network: nn.Module, layers: Sequence[Layer], ranges: Ranges, scheme: Scheme, device: torch.device
) -> Iterator[Mapping[str, ActivationFakeQuantize]]:
    """While it lasts, `layers` of a network compute in fake int8; afterwards their weights are those learned, in float.

    Yields the quantizers by the tensor that they round: layers that read one tensor share one.
    """
    modules = [_module(network, layer) for layer in layers]
    quantizers = {
        layer.input: ActivationFakeQuantize(scheme, ranges[layer.input]).to(device) for layer in layers
    }  # fmt: skip
    hooks = []
    for layer, module in zip(layers, modules, strict=True):
        hooks.append(module.register_forward_pre_hook(_rounding(quantizers[layer.input])))
        parametrize.register_parametrization(module, "weight", WeightFakeQuantize())
    try:
        yield quantizers
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _rounding(quantizer: nn.Module) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (quantizer(inputs[0]),)

    return hook


def _module(network: nn.Module, layer: Layer) -> nn.Module:
    try:
        found = network.get_submodule(layer.name)
    except AttributeError:
        found = None
    if not isinstance(found, (nn.Conv2d, nn.Linear)):
        raise InputError(f"--qat cannot follow this network: its graph's layer {layer.name} is none of its modules")
    return found


@torch.no_grad()
def _loss(student: Network, teacher: Network, squares: Pixels, preprocessing: Preprocessing, tau: float) -> float:
    device = next(teacher.parameters()).device
    total = 0.0
    for start in range(0, len(squares), BATCH):
        batch = prepare(torch.from_numpy(squares[start : start + BATCH]).to(device), preprocessing)
        total += float(distillation_kl(student(batch).logits, teacher(batch).logits, tau)) * len(batch)
    return total / len(squares)
