"""The stem of a ResNet as a CPU trains it fastest in bf16: pooled before it is rectified, with timm's numbers."""

from __future__ import annotations

from timm.models.resnet import ResNet
from torch import Tensor, nn

from edgeda.fast_layers import rectify, use_fast_layers


class LaterReLU(nn.ReLU):
    """The ReLU before a stem's pooling: left to `RectifyingPool`, which has a quarter as much to do."""

    def forward(self, input: Tensor) -> Tensor:
        """`input`."""
        return input


class RectifyingPool(nn.MaxPool2d):
    """Max pooling, then ReLU: the same numbers and gradients as the other way round."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to the pooled size."""
        return rectify(super().forward(input), inplace=True)


def use_fast_network(network: nn.Module) -> None:
    """Exchange layers and stems of `network` in place; parameters and names stay the same."""
    use_fast_layers(network)
    for module in network.modules():
        if isinstance(module, ResNet) and isinstance(module.act1, nn.ReLU) and type(module.maxpool) is nn.MaxPool2d:
            module.maxpool.__class__ = RectifyingPool
            module.act1.__class__ = LaterReLU
