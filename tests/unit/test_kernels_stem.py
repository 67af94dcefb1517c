"""The compiled stem against torch's BatchNorm, ReLU and max pooling, in double precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgeda.kernels.batchnorm import CompiledBatchNorm2d
from edgeda.kernels.compiled import available
from edgeda.kernels.stem import can_pool, normalize_and_pool

pytestmark = pytest.mark.skipif(not available(), reason="numba (the extra fast) is not installed")
POOL = nn.MaxPool2d(3, 2, 1)


def layer() -> CompiledBatchNorm2d:
    torch.manual_seed(1)
    made = CompiledBatchNorm2d(12)
    nn.init.uniform_(made.weight, -1.5, 1.5)  # a negative slope turns the maximum into the minimum
    nn.init.uniform_(made.bias, -0.5, 0.5)
    return made


def step(of: nn.BatchNorm2d, ours: bool, x: Tensor) -> dict[str, Tensor]:
    x.requires_grad_()
    assert not ours or can_pool(of, POOL, x)
    y = normalize_and_pool(of, x) if ours else POOL(torch.relu(nn.BatchNorm2d.forward(of, x)))
    (y.square() * torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(y.dtype)).sum().backward()
    assert x.grad is not None
    left = {"y": y.detach(), "dx": x.grad} | dict(of.named_buffers())
    return left | {f"d{name}": part.grad for name, part in of.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (2, 1), (1, 7)])
def test_fp32_is_torchs_to_rounding(size: tuple[int, int]):
    of = layer()
    x = (torch.randn(3, 12, *size) * 2 + 1).contiguous(memory_format=torch.channels_last)
    theirs, ours = step(copy.deepcopy(of).double(), False, x.double()), step(of, True, x)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        near = 5e-5 * max(1, wanted.abs().max())
        assert (ours[name].double() - wanted.double()).abs().max() < near, name


def test_bf16_rounds_its_outcome_alone():
    """Maxima are found before they are rounded: values are within 2^-8 of the exact ones."""
    of = layer()
    x = torch.randn(3, 12, 20, 20).bfloat16().contiguous(memory_format=torch.channels_last)
    exact, ours = step(copy.deepcopy(of).double(), False, x.double()), step(of, True, x)
    assert ours["y"].dtype == ours["dx"].dtype == torch.bfloat16
    torch.testing.assert_close(ours["y"].double(), exact["y"], rtol=2**-8, atol=1e-6)
    assert (ours["dx"].double() - exact["dx"]).norm() < 0.01 * exact["dx"].norm()


def test_nan_is_the_greatest():
    x = torch.randn(1, 12, 8, 8).contiguous(memory_format=torch.channels_last)
    x[0, 5, 3, 3] = float("nan")
    assert normalize_and_pool(layer(), x)[:, 5].isnan().all()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, 2), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d(3, 1, 1)])
def test_other_windows_are_left_to_torch(pool: nn.MaxPool2d):
    assert not can_pool(layer(), pool, torch.zeros(2, 12, 8, 8).contiguous(memory_format=torch.channels_last))
