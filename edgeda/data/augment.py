"""Random geometry and light on whole uint8 batches: one affine map for crop, zoom, turn, shift and shear.

A kernel shows a batch through its maps (`edgeda.kernels.sampling`): on a CPU, with the extra `fast`, where the batch is
large enough. Otherwise torch does. A map that neither turns nor shears shows an upright window of the square, whose
edges lie between pixels: torch on a CPU cuts it out and resizes bytes, several times as fast as it samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from edgeda.kernels.sampling import can_sample, sample
from edgeda.recipe import AugmentRecipe
from edgeda.runtime.preprocessing import Preprocessing

CHUNK = 2**18
"""Values that are normalized at a time: few enough for a core's own cache."""


def prepare(
    squares: Tensor, preprocessing: Preprocessing, augment: AugmentRecipe | None = None,
    random: Generator | None = None, part: tuple[slice, int] | None = None,
) -> Tensor:  # fmt: skip
    """Stored squares uint8 `(B, S, S, 3)` to normalized float32 images `(B, 3, size, size)`, channels-last.

    Without `augment`, the central crop: the same numbers as the runtime's `network_input`. `part`: which images of a
    batch of how many these are; random numbers are drawn for all of them.
    """
    own, count = part or (slice(None), len(squares))
    size = preprocessing.size
    if augment is None:
        offset = (preprocessing.stored_size - size) // 2
        return _normalized(squares[:, offset : offset + size, offset : offset + size], preprocessing)
    maps = affine_maps(count, preprocessing, augment, random)[own]
    light = _light_draws(augment, count, random)[:, own]
    if can_sample(squares, count, size):
        return sample(squares, maps, light, _slope_and_shift(preprocessing), size).permute(0, 3, 1, 2)
    images = torch.empty(len(squares), size, size, 3, device=squares.device)
    show = _windows if is_upright(augment) and squares.device.type == "cpu" else _sample
    show(squares, maps, images)
    _light(images, light)
    return _normalized(images, preprocessing)


def is_upright(augment: AugmentRecipe) -> bool:
    """Whether images are neither turned nor sheared."""
    return not (augment.rotate or augment.shear)


def affine_maps(count: int, preprocessing: Preprocessing, augment: AugmentRecipe, random: Generator | None) -> Tensor:
    """Maps `(count, 2, 3)` from output to input coordinates in [-1, 1], drawn on the CPU.

    The output window is `size / stored_size` of the stored square; with `augment.crop` random it lies
    anywhere inside it, otherwise at its centre. An upright window has edges between pixels.
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
    across, down = uniform(-reach, reach), uniform(-reach, reach)
    if is_upright(augment):
        side = (zoom * preprocessing.stored_size).round().clamp(min=1)
        zoom = side / preprocessing.stored_size
        across, down = (_between_pixels(centre, side, preprocessing.stored_size) for centre in (across, down))
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = zoom * torch.cos(angle) * mirror
    maps[:, 0, 1] = zoom * (shear * torch.cos(angle) - torch.sin(angle))
    maps[:, 1, 0] = zoom * torch.sin(angle) * mirror
    maps[:, 1, 1] = zoom * (shear * torch.sin(angle) + torch.cos(angle))
    maps[:, 0, 2] = across
    maps[:, 1, 2] = down
    return maps


def _between_pixels(centre: Tensor, side: Tensor, stored: int) -> Tensor:
    """The nearest centre in [-1, 1] that puts a window of `side` pixels on whole ones; the middle goes up and left."""
    start = ((centre + 1) * stored - side) / 2
    return (2 * (start - 1e-3).round() + side) / stored - 1


def _windows(squares: Tensor, maps: Tensor, out: Tensor) -> None:
    """Upright windows of squares `(B, S, S, 3)` into `out`, float32 `(B, size, size, 3)`; the border is repeated."""
    stored, size = squares.shape[1], out.shape[1]
    sides = (maps[:, 1, 1] * stored).round().long().tolist()
    starts = (((maps[:, :, 2] + 1) * stored - maps[:, 1, 1, None] * stored) / 2).round().long().tolist()
    mirrored = (maps[:, 0, 0] < 0).tolist()
    for image, square, (left, top), side, mirror in zip(out, squares, starts, sides, mirrored, strict=True):
        window = _cut(square, left, top, side)
        if side != size:
            # a batch of one that is whole in memory and known to be channels-last: resized as such, twice as fast
            batch = torch.from_numpy(np.ascontiguousarray(window.numpy()))[None].permute(0, 3, 1, 2)
            resized = F.interpolate(batch, size=(size, size), mode="bilinear", align_corners=False)
            window = resized[0].permute(1, 2, 0)
        image.copy_(window.flip(1) if mirror else window)


def _cut(square: Tensor, left: int, top: int, side: int) -> Tensor:
    """The window of `side` pixels at `left`, `top` of a square `(S, S, 3)`, whose border is repeated."""
    stored = len(square)
    if 0 <= left <= stored - side and 0 <= top <= stored - side:
        return square[top : top + side, left : left + side]
    rows, columns = (np.arange(first, first + side) for first in (top, left))
    return torch.from_numpy(square.numpy().take(rows, 0, mode="clip").take(columns, 1, mode="clip"))


def _sample(squares: Tensor, maps: Tensor, out: Tensor) -> None:
    """Squares `(B, S, S, 3)` seen through any maps, into `out`, float32 `(B, size, size, 3)`."""
    images = squares.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(maps.to(images.device), [len(images), 3, *out.shape[1:3]], align_corners=False)
    seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    out.copy_(seen.permute(0, 2, 3, 1))


def _light_draws(augment: AugmentRecipe, count: int, random: Generator | None) -> Tensor:
    """Changes of contrast and brightness for `count` images, `(2, count)`; `(0, count)` when neither changes."""
    if not (augment.brightness or augment.contrast):
        return torch.empty(0, count)
    draws = torch.rand(2, count, generator=random) * 2 - 1
    return draws * torch.tensor([[augment.contrast], [augment.brightness]])


def _light(images: Tensor, draws: Tensor) -> None:
    """Change contrast and brightness of images `(B, H, W, 3)` in place, by draws `(2, B)`; `(0, B)`: not at all."""
    if not len(draws):
        return
    contrast, brightness = draws.view(2, -1, 1, 1, 1).to(images.device)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images.sub_(middle).mul_(1 + contrast).add_(middle + 255 * brightness).clamp_(0, 255)


def _normalized(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images `(B, H, W, 3)` in units of bytes to what a network takes; float32 ones are changed in place."""
    count, size = images.shape[:2]
    slope, shift = _slope_and_shift(preprocessing).repeat(1, size).to(images.device)
    whole = images if images.dtype == torch.float32 and images.is_contiguous() else None
    out = torch.empty(count, size, size, 3, device=images.device) if whole is None else whole
    step = max(1, CHUNK // (3 * size * size)) if images.device.type == "cpu" else max(1, count)
    for at in range(0, count, step):
        part = out[at : at + step]
        if whole is None:
            part.copy_(images[at : at + step])
        part.view(-1, 3 * size).mul_(slope).add_(shift)
    return out.permute(0, 3, 1, 2)


def _slope_and_shift(preprocessing: Preprocessing) -> Tensor:
    """What a byte is multiplied with, and what is then added, by colour: float32 `(2, 3)`."""
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
    std = torch.tensor(preprocessing.std, dtype=torch.float64)
    return torch.stack([1 / (255 * std), -mean / std]).float()
