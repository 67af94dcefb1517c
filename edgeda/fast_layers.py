"""Layers of a network as a CPU trains them fastest in bf16: the same parameters and the same mathematics.

torch's bf16 kernels for these two cost more than their memory traffic; benchmarks/NOTES.md has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as a matrix product of pixels and channels, where the memory format allows it."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, K, H, W)`; the weight's gradient is one matrix product, without reordering."""
        if not half(input) or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class IntegerReLU(nn.ReLU):
    """ReLU of bf16 numbers by comparing their bits as integers: the sign bit is the same."""

    def forward(self, input: Tensor) -> Tensor:
        """`max(input, 0)`. A NaN of negative sign becomes 0 here, and NaN again in the gradient of what made it."""
        return rectify(input, self.inplace)


def rectify(values: Tensor, inplace: bool) -> Tensor:
    """`max(values, 0)`, of bf16 numbers on a CPU by their bits."""
    if values.dtype != torch.bfloat16 or values.device.type != "cpu":
        return nn.functional.relu(values, inplace=inplace)
    rectified: Tensor = _Rectify.apply(values, inplace)
    return rectified


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, inplace: bool) -> Tensor:
        if inplace:
            values.view(torch.int16).clamp_min_(0)
            ctx.mark_dirty(values)
            result = values
        else:
            result = values.view(torch.int16).clamp_min(0).view(torch.bfloat16)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        bits = torch.ops.aten.threshold_backward(gradients[0].view(torch.int16), result.view(torch.int16), 0)
        return bits.view(torch.bfloat16), None


def use_fast_layers(network: nn.Module) -> None:
    """Exchange the layers of `network` in place; parameters, their names and what is saved stay the same."""
    for module in network.modules():
        if type(module) is nn.ReLU:
            module.__class__ = IntegerReLU
        elif type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = PointwiseConv2d


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.padding in ((0, 0), "valid")


def half(values: Tensor) -> bool:
    """Whether a layer computes in bf16 on a CPU, from the numbers themselves or by autocast."""
    if values.device.type != "cpu":
        return False
    return values.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
