"""The compiled BatchNorm against torch's in double precision: numbers, gradients, statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgeda.kernels.batchnorm import CompiledBatchNorm2d, can_normalize, normalize
from edgeda.kernels.compiled import available

pytestmark = pytest.mark.skipif(not available(), reason="numba (the extra fast) is not installed")
SHAPE = (5, 24, 19, 7)


def layer(channels: int = SHAPE[1], momentum: float | None = 0.1) -> CompiledBatchNorm2d:
    torch.manual_seed(1)
    made = CompiledBatchNorm2d(channels, momentum=momentum)
    nn.init.uniform_(made.weight, -1.5, 1.5)
    nn.init.uniform_(made.bias, -0.5, 0.5)
    return made


def images(kind: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    made = torch.randn(shape, generator=random) * 2 + torch.arange(shape[1]).view(1, -1, 1, 1) / 4
    return made.to(kind).contiguous(memory_format=torch.channels_last)


def plain(of: nn.BatchNorm2d, x: Tensor, rectify: bool, shortcut: Tensor | None) -> Tensor:
    """What is to be computed, by torch."""
    y = nn.BatchNorm2d.forward(of, x)
    y = y if shortcut is None else y + shortcut
    return torch.relu(y) if rectify else y


def step(of: nn.BatchNorm2d, ours: bool, kind: torch.dtype, rectify: bool, adds: bool) -> dict[str, Tensor]:
    """Everything that a forward and a backward of the numbers of `kind` leave; by torch in double precision."""
    x, shortcut, gradient = images(kind), images(kind, seed=2) if adds else None, images(kind, seed=3)
    if not ours:
        of, x, gradient = copy.deepcopy(of).double(), x.double(), gradient.double()
        shortcut = shortcut.double() if shortcut is not None else None
    x.requires_grad_()
    if shortcut is not None:
        shortcut.requires_grad_()
    assert not ours or can_normalize(of, x, shortcut)
    y = (normalize if ours else plain)(of, x, rectify, shortcut)
    y.backward(gradient)
    assert x.grad is not None
    left = {"y": y.detach(), "dx": x.grad} | dict(of.named_buffers())
    left |= {f"d{name}": part.grad for name, part in of.named_parameters() if part.grad is not None}
    return left if shortcut is None or shortcut.grad is None else left | {"ds": shortcut.grad}


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_fp32_is_torchs_to_rounding(rectify: bool, adds: bool, momentum: float | None):
    of = layer(momentum=momentum)
    theirs = step(of, False, torch.float32, rectify, adds)
    ours = step(of, True, torch.float32, rectify, adds)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        near = 1e-3 if name in ("dweight", "dbias") else 2e-5  # sums of 665 numbers of either sign
        assert (ours[name].double() - wanted.double()).abs().max() < near * max(1, wanted.abs().max()), name


@pytest.mark.parametrize("adds", [False, True])
def test_bf16_is_rounded_once(adds: bool):
    """The sum is formed before it is rounded, to the nearest: within 2^-8 of the exact numbers."""
    theirs = step(layer(), False, torch.bfloat16, True, adds)
    ours = step(layer(), True, torch.bfloat16, True, adds)
    for name in ("y", "dx"):
        assert ours[name].dtype == torch.bfloat16
        torch.testing.assert_close(ours[name].double(), theirs[name], rtol=2**-8 * 1.01, atol=1e-5)
    for name in ("dweight", "dbias", "running_mean", "running_var"):
        torch.testing.assert_close(ours[name].double(), theirs[name].double(), rtol=1e-5, atol=2e-3)


def test_the_number_of_threads_changes_no_bit():
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            of, x = layer(64), images(shape=(6, 64, 40, 40)).requires_grad_()
            normalize(of, x, rectify=True).square().sum().backward()
        finally:
            torch.set_num_threads(before)
        assert x.grad is not None
        found.append([x.grad, of.weight.grad, of.running_var])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_far_from_zero_nothing_cancels():
    """A mean of a thousand standard deviations: squares alone would leave no correct digit of the variance."""
    x = images(shape=(8, 3, 31, 31)) + 2000
    of = layer(3, momentum=1.0)
    y = normalize(of, x.requires_grad_())
    torch.testing.assert_close(of.running_var, x.double().var((0, 2, 3)).float(), rtol=1e-4, atol=0)
    assert y.detach().isfinite().all()


def test_a_constant_channel_is_its_bias():
    of = layer(2)
    y = normalize(of, torch.full((2, 2, 3, 3), 7.0).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y[0, :, 0, 0], of.bias, rtol=0, atol=1e-5)


def test_nan_is_not_rectified_away():
    x = images()
    x[0, 3, 2, 2] = float("nan")
    assert normalize(layer(), x, rectify=True)[:, 3].isnan().all()


def test_without_gradients_memory_is_used_again_only_when_nobody_needs_it():
    x = images()
    kept = x.clone()
    with torch.no_grad():
        y = normalize(layer(), x, rectify=True)
        assert torch.equal(x, kept)
        again = normalize(layer(), x, rectify=True, reuse=True)
    assert again.data_ptr() == x.data_ptr()
    assert torch.equal(again, y)


def test_gradients_in_another_format_are_put_in_order():
    """Behind a mean over pixels, a gradient is one number by channel, expanded."""
    ours, theirs = layer(), layer()
    x, copied = images().requires_grad_(), images().requires_grad_()
    normalize(ours, x).mean((2, 3)).square().sum().backward()
    plain(theirs, copied, False, None).mean((2, 3)).square().sum().backward()
    assert x.grad is not None
    assert copied.grad is not None
    torch.testing.assert_close(x.grad, copied.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        lambda: (layer().eval(), images()),
        lambda: (layer(), images().contiguous()),
        lambda: (layer(), images().double()),
        lambda: (layer(), images(shape=(1, 24, 1, 1))),
        lambda: (nn.BatchNorm2d(24), images()),
        lambda: (layer(), images(), images(torch.bfloat16)),
        lambda: (layer(), images(), images(shape=(5, 24, 19, 8))),
    ],
)
def test_what_the_kernels_do_not_take_is_left_to_torch(given):
    assert not can_normalize(*given())
