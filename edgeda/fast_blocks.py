"""Blocks and stems of a ResNet as a CPU trains them fastest: timm's parameters, names and mathematics."""

from __future__ import annotations

from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from edgeda.fast_layers import rectify, use_fast_layers
from edgeda.kernels.batchnorm import CompiledBatchNorm2d, can_normalize, normalize
from edgeda.kernels.stem import can_pool, normalize_and_pool

WORTH_COMPILING = 2**20
"""Pixels of a step's images from which on compiled kernels are used: below, a step takes less than compiling."""


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


class CompiledBasicBlock(BasicBlock):  # type: ignore[misc] # timm has no types
    """Two convolutions and a shortcut: BatchNorm, addition and ReLU behind each in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, K, H / stride, W / stride)`."""
        inner = _rectified(self.bn1, self.act1, self.conv1(x))
        return _joined(self, self.bn2, self.act2, self.conv2(inner), x)


class CompiledBottleneck(Bottleneck):  # type: ignore[misc] # timm has no types
    """Three convolutions and a shortcut: BatchNorm, addition and ReLU behind each in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, 4 K, H / stride, W / stride)`."""
        inner = _rectified(self.bn1, self.act1, self.conv1(x))
        inner = _rectified(self.bn2, self.act2, self.conv2(inner))
        return _joined(self, self.bn3, self.act3, self.conv3(inner), x)


class CompiledResNet(ResNet):  # type: ignore[misc] # timm has no types
    """A ResNet whose stem is normalized, rectified and pooled by one kernel."""

    def forward_features(self, x: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, C, H / 32, W / 32)`."""
        x = self.conv1(x)
        if can_pool(self.bn1, self.maxpool, x):
            x = normalize_and_pool(self.bn1, x)
        else:
            x = self.maxpool(self.act1(self.bn1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x


def use_fast_network(network: nn.Module, half: bool, pixels: int) -> None:
    """Exchange what `network` is made of, in place, for training in bf16 (`half`) or fp32; parameters and names stay.

    `pixels`: of all the images of a step. Nothing is decided by time, so that a run is the same when it is repeated.
    """
    if half:
        use_fast_layers(network)
    for module in network.modules():
        if type(module) is ResNet and isinstance(module.act1, nn.ReLU) and type(module.maxpool) is nn.MaxPool2d:
            module.maxpool.__class__ = RectifyingPool
            module.act1.__class__ = LaterReLU
            if pixels >= WORTH_COMPILING and not module.grad_checkpointing:
                module.__class__ = CompiledResNet
    if pixels < WORTH_COMPILING:
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CompiledBatchNorm2d
        elif type(module) in _COMPILED and _is_plain(module):
            module.__class__ = _COMPILED[type(module)]


_COMPILED: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: CompiledBasicBlock, Bottleneck: CompiledBottleneck}


def _is_plain(block: nn.Module) -> bool:
    """Whether nothing but convolutions, BatchNorm, ReLU and an addition is in a block."""
    between = [getattr(block, name, None) for name in ("aa", "se", "drop_block", "drop_path")]
    rectifies = [isinstance(module, nn.ReLU) for name, module in block.named_children() if name.startswith("act")]
    return all(part is None or type(part) is nn.Identity for part in between) and all(rectifies)


def _rectified(layer: nn.Module, activation: nn.Module, images: Tensor) -> Tensor:
    if can_normalize(layer, images):
        return normalize(layer, images, rectify=True, reuse=True)
    rectified: Tensor = activation(layer(images))
    return rectified


def _joined(block: Any, layer: nn.Module, activation: nn.Module, images: Tensor, before: Tensor) -> Tensor:
    """The end of a block: BatchNorm, plus what came `before` the block or its downsampling, rectified."""
    shortcut = before if block.downsample is None else block.downsample(before)
    if can_normalize(layer, images, shortcut):
        return normalize(layer, images, rectify=True, shortcut=shortcut, reuse=True)
    rectified: Tensor = activation(layer(images) + shortcut)
    return rectified
