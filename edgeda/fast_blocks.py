"""Bottlenecks and the stem of a ResNet as a CPU trains them fastest in bf16: parts that meet in memory are one step.

What costs there is reading and writing large tensors, not arithmetic; benchmarks/NOTES.md has the figures. Parameters,
their names and the mathematics are those of timm's blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from edgeda.fast_layers import PointwiseConv2d, half, rectified_gradient, rectify, use_fast_layers

aten = torch.ops.aten


class FastBottleneck(Bottleneck):  # type: ignore[misc]
    """A bottleneck whose shortcut is added, and its gradient summed, inside matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, D, H', W')`; as timm's own wherever a fast step does not apply."""
        if not (self.training and half(x) and x.dtype == torch.bfloat16 and _last(x) and self._is_plain()):
            plain: Tensor = super().forward(x)
            return plain
        branch = None if self.downsample is None else self.downsample[0]
        inner, shortcut = _Enter.apply(
            x, _matrix(self.conv1), None if branch is None else _matrix(branch), branch.stride[0] if branch else 1
        )
        inner = self.act2(self.bn2(self.conv2(self.act1(self.bn1(inner)))))
        if self.downsample is not None:
            shortcut = self.downsample[1](shortcut)
        norm = self.bn3
        norm.num_batches_tracked.add_(1)
        left: Tensor = _Leave.apply(
            inner, shortcut, _matrix(self.conv3), norm.weight, norm.bias, norm.running_mean, norm.running_var,
            norm.momentum, norm.eps,
        )  # fmt: skip
        return left

    def _is_plain(self) -> bool:
        """Whether the steps below say all that this block does: looked at each time, as layers may be exchanged."""
        parts = [self.conv1, self.conv3, self.bn3, self.act3]
        if self.downsample is not None:
            if len(self.downsample) != 2 or not _is_branch(self.downsample[0]):
                return False
            parts += [self.downsample, self.downsample[0]]
        return (
            type(self.conv1) is type(self.conv3) is PointwiseConv2d
            and self.conv1.bias is self.conv3.bias is None
            and type(self.bn3) is nn.BatchNorm2d
            and self.bn3.training
            and self.bn3.affine
            and self.bn3.track_running_stats
            and self.bn3.momentum is not None
            and isinstance(self.act3, nn.ReLU)
            and isinstance(self.aa, nn.Identity)
            and isinstance(self.drop_block, nn.Identity)
            and self.se is None
            and self.drop_path is None
            and not any(_is_watched(part) for part in parts)
        )


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
    """Exchange layers, timm's bottlenecks and stems of `network` in place; parameters and names stay the same."""
    use_fast_layers(network)
    for module in network.modules():
        if type(module) is Bottleneck and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
            module.__class__ = FastBottleneck
        elif isinstance(module, ResNet) and isinstance(module.act1, nn.ReLU) and type(module.maxpool) is nn.MaxPool2d:
            module.maxpool.__class__ = RectifyingPool
            module.act1.__class__ = LaterReLU


class _Enter(torch.autograd.Function):
    """What a block begins with: the product that narrows its input, and the shortcut.

    Backward sums the gradients of both inside the product, and puts those of a strided shortcut where they belong,
    instead of filling what lies between with zeros.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, narrow: Tensor, branch: Tensor | None, stride: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(images, narrow, branch)
        ctx.stride = stride
        inner = _images(_pixels(images) @ narrow.t(), images)
        if branch is None:
            return inner, images.view_as(images)
        seen = _strided(images, stride)
        return inner, _images(_pixels(seen) @ branch.t(), seen)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor | None, None]:
        images, narrow, branch = ctx.saved_tensors
        inner, shortcut = (_pixels(gradient) for gradient in gradients)
        of_narrow = inner.t() @ _pixels(images)
        if branch is None:  # the gradient that `_Leave` made for this shortcut alone
            return _images(shortcut.addmm_(inner, narrow), images), of_narrow, None, None
        of_images = _images(inner @ narrow, images)
        seen = _strided(images, ctx.stride)
        of_branch = shortcut.t() @ _pixels(seen)
        if ctx.stride == 1:
            _pixels(of_images).addmm_(shortcut, branch)
        else:
            of_images[:, :, :: ctx.stride, :: ctx.stride] += _images(shortcut @ branch, seen)
        return of_images, of_narrow, of_branch, None


class _Leave(torch.autograd.Function):
    """What a block ends with: the product that widens, BatchNorm, the shortcut's addition and ReLU.

    Once the statistics of the product are known, normalizing it is a second product with scaled weights, which adds
    the shortcut and rectifies as it writes: cheaper than reading the first one again.
    """

    @staticmethod
    def forward(
        ctx: Any, inner: Tensor, shortcut: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, running_mean: Tensor,
        running_variance: Tensor, momentum: float, epsilon: float,
    ) -> Tensor:  # fmt: skip
        wide = _images(_pixels(inner) @ weight.t(), inner)
        mean, variance = torch.batch_norm_update_stats(wide, running_mean, running_variance, momentum)
        inverse = (variance + epsilon).rsqrt()
        times = scale * inverse
        folded = (weight * times[:, None]).to(weight.dtype)[:, :, None, None]
        plus = (shift - mean * times).to(weight.dtype)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            inner, shortcut, folded, plus, [0, 0], [1, 1], [1, 1], 1, "add", 1.0, "relu", [], ""
        )
        ctx.save_for_backward(inner, weight, scale, wide, mean, inverse, out)
        ctx.epsilon = epsilon
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        inner, weight, scale, wide, mean, inverse, out = ctx.saved_tensors
        of_sum = rectified_gradient(gradients[0].contiguous(memory_format=torch.channels_last), out)
        of_wide, of_scale, of_shift = aten.native_batch_norm_backward(
            of_sum, wide, scale, None, None, mean, inverse, True, ctx.epsilon, [True, True, True]
        )
        pixels = _pixels(of_wide)
        of_inner, of_weight = _images(pixels @ weight, inner), pixels.t() @ _pixels(inner)
        return of_inner, of_sum, of_weight, of_scale, of_shift, None, None, None, None


def _pixels(images: Tensor) -> Tensor:
    """Images `(B, C, H, W)` as rows `(B * H * W, C)`: a view where the channels lie last in memory."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _images(pixels: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_pixels`, for images of the size of `like`."""
    count, _, height, width = like.shape
    return pixels.view(count, height, width, -1).permute(0, 3, 1, 2)


def _strided(images: Tensor, stride: int) -> Tensor:
    return images[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)


def _matrix(conv: nn.Conv2d) -> Tensor:
    return conv.weight.flatten(1).to(torch.bfloat16)


def _last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


def _is_branch(conv: nn.Module) -> bool:
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (1, 1)
        and conv.stride[0] == conv.stride[1]
        and conv.groups == 1
        and conv.bias is None
        and conv.padding in ((0, 0), "valid")
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks look at what goes in or comes out."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
