"""The networks that CCKDN trains beside the classifier: compression, reconstruction, transforms, discriminator.

The paper gives no layer sizes. Compression taps lie at the strides of the classifier's (4, 8 and 32 for a ResNet).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Compression(nn.Module):
    """Co: images `(B, 3, H, W)` to features at each of `strides`, `widths` channels wide."""

    def __init__(self, strides: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        channels, stride = 3, 1
        for tap, width in zip(strides, widths, strict=True):
            layers: list[nn.Module] = []
            while stride < tap:
                layers += block(channels, width, 2)
                channels, stride = width, stride * 2
            self.parts.append(nn.Sequential(*layers, *block(channels, width, 1)))
            channels = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """Low, medium and high features, in that order."""
        taps: list[Tensor] = []
        for part in self.parts:
            images = part(images)
            taps.append(images)
        return taps


class Reconstruction(nn.Module):
    """Re: high features at `stride` to images `(B, 3, H, W)` in [-1, 1]; no skip connections."""

    def __init__(self, channels: int, stride: int, narrowest: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(round(math.log2(stride))):
            width = max(channels // 2, narrowest)
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), *block(channels, width, 1)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1), nn.Tanh())

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """The image that features stand for, cut or stretched to `size`."""
        images: Tensor = self.layers(features)
        return images if images.shape[2:] == size else F.interpolate(images, size, mode="bilinear", align_corners=False)


class Transform(nn.Module):
    """FTM: the classifier's features into the space of the compression network's."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Transformed features, resized to `size` where the two networks round differently."""
        out: Tensor = self.layers(features)
        return out if out.shape[2:] == size else F.interpolate(out, size, mode="bilinear", align_corners=False)


def discriminator(normalized: bool, width: int = 32) -> nn.Sequential:
    """D: three times (conv, conv, down), then a logit for each patch: `(B, 3, H, W)` to `(B, 1, H / 8, W / 8)`.

    `normalized` puts spectral norm on every layer.
    """

    def conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Module:
        layer = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2)
        return spectral_norm(layer) if normalized else layer

    layers: list[nn.Module] = []
    channels = 3
    for out in (width, 2 * width, 4 * width):
        for stride in (1, 1, 2):
            layers += [conv(channels, out, 3, stride), nn.LeakyReLU(0.2)]
            channels = out
    return nn.Sequential(*layers, conv(channels, 1, 1))


def block(channels: int, width: int, stride: int) -> list[nn.Module]:
    """Convolution, BatchNorm, LeakyReLU."""
    return [
        nn.Conv2d(channels, width, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
    ]


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Mean of (|grad D(x)| - 1)^2 at x = share * real + (1 - share) * fake (WGAN-GP, Gulrajani et al., 2017).

    D(x) is the mean of a critic's outputs over an image's patches, as in its loss. `share` `(B, 1, 1, 1)` is random in
    [0, 1).
    """
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).flatten(1).mean(1).sum(), between, create_graph=True)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty
