"""Random geometry and light on whole uint8 batches: one affine sampling for crop, zoom, turn, shift and shear."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from edgeda.recipe import AugmentRecipe
from edgeda.runtime.preprocessing import Preprocessing


def prepare(
    squares: Tensor, preprocessing: Preprocessing, augment: AugmentRecipe | None = None, random: Generator | None = None
) -> Tensor:
    """Stored squares uint8 `(B, S, S, 3)` to normalized float32 images `(B, 3, size, size)`, channels-last.

    Without `augment`, the central crop: the same numbers as the runtime's `network_input`.
    """
    images = squares.permute(0, 3, 1, 2).float()
    if augment is None:
        offset = (preprocessing.stored_size - preprocessing.size) // 2
        stop = offset + preprocessing.size
        images = images[:, :, offset:stop, offset:stop]
    else:
        images = _sample(images, preprocessing.size, affine_maps(len(images), preprocessing, augment, random))
        images = _light(images, augment, random)
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    return ((images / 255.0 - mean) / std).contiguous(memory_format=torch.channels_last)


def affine_maps(count: int, preprocessing: Preprocessing, augment: AugmentRecipe, random: Generator | None) -> Tensor:
    """Maps `(count, 2, 3)` from output to input coordinates in [-1, 1], drawn on the CPU.

    The output window is `size / stored_size` of the stored square; with `augment.crop` random it lies
    anywhere inside it, otherwise at its centre.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=random) * (high - low) + low

    angle = uniform(-augment.rotate, augment.rotate) * (math.pi / 180)
    shear = torch.tan(uniform(-augment.shear, augment.shear) * (math.pi / 180))
    window = preprocessing.size / preprocessing.stored_size
    zoom = window / uniform(*augment.scale)
    mirror = torch.ones(count)
    if augment.flip:
        mirror = torch.where(torch.rand(count, generator=random) < 0.5, -1.0, 1.0)
    slack = (1.0 - window) if augment.crop == "random" else 0.0
    reach = slack + 2.0 * augment.translate * window
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = zoom * torch.cos(angle) * mirror
    maps[:, 0, 1] = zoom * (shear * torch.cos(angle) - torch.sin(angle))
    maps[:, 1, 0] = zoom * torch.sin(angle) * mirror
    maps[:, 1, 1] = zoom * (shear * torch.sin(angle) + torch.cos(angle))
    maps[:, 0, 2] = uniform(-reach, reach)
    maps[:, 1, 2] = uniform(-reach, reach)
    return maps


def _sample(images: Tensor, size: int, maps: Tensor) -> Tensor:
    grid = F.affine_grid(maps.to(images.device), [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _light(images: Tensor, augment: AugmentRecipe, random: Generator | None) -> Tensor:
    if not (augment.brightness or augment.contrast):
        return images
    draws = torch.rand(2, len(images), 1, 1, 1, generator=random).to(images.device) * 2 - 1
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - middle) * (1 + augment.contrast * draws[0]) + middle + 255 * augment.brightness * draws[1]
    return images.clamp(0, 255)
