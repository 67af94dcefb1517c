"""Layers exchanged for training on a CPU: the same numbers, parameters and names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeda.fast_layers import IntegerReLU, PointwiseConv2d, use_fast_layers
from edgeda.models import Architecture, build_network


def gradients(layer: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of input and parameters, of one seeded direction."""
    images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images * 1)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(direction.to(output.dtype))
    return [output.detach().float(), images.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_convolution_is_the_convolution(bias):
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 24, 1, bias=bias).to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    assert type(fast) is PointwiseConv2d
    images = torch.randn(4, 16, 7, 5).to(memory_format=torch.channels_last)
    for ours, theirs in zip(gradients(fast, images), gradients(plain, images), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 2**-6 * theirs.abs().max()  # bf16 keeps 8 bits
    assert fast(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 1, padding=1),
        nn.Conv2d(8, 8, 1, stride=2),
    ],
)
def test_other_convolutions_stay(conv):
    use_fast_layers(conv)
    assert type(conv) is nn.Conv2d


@pytest.mark.parametrize("inplace", [True, False])
def test_integer_relu_is_relu(inplace):
    values = torch.tensor([-3.0, -0.0, 0.0, 1e-30, 2.5, float("inf"), float("-inf")], dtype=torch.bfloat16)
    fast = IntegerReLU(inplace)
    wanted = values.relu()
    leaf = values.clone().requires_grad_()
    given = leaf * 1
    out = fast(given)
    assert torch.equal(out, wanted)
    assert (out is given) == inplace
    out.backward(torch.ones_like(out))
    assert leaf.grad.tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert fast(torch.tensor([float("nan"), -1.0])).isnan().tolist() == [True, False]  # fp32: torch's own


def test_a_weight_that_is_not_a_number_still_shows_in_the_gradients():
    """Rectified, a negative NaN is 0: the loss may stay finite, gradients do not."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    use_fast_layers(layers)
    with torch.no_grad():
        layers[0].weight[0, 0] = -float("nan")
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        layers(images).float().sum().backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in layers.parameters()])
    assert not torch.isfinite(norm)


def test_a_network_keeps_its_names_and_its_numbers_in_fp32():
    torch.manual_seed(0)
    plain = build_network(Architecture("resnet26", 3))[0].to(memory_format=torch.channels_last).train()
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    assert {type(module) for module in fast.modules()} >= {PointwiseConv2d, IntegerReLU}
    assert list(fast.state_dict()) == list(plain.state_dict())
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    assert torch.equal(fast(images).logits, plain(images).logits)
