"""Random geometry and light on whole uint8 batches: one affine map for crop, zoom, turn, shift and shear.

A map that neither turns nor shears shows an upright window of the square. Windows begin and end between pixels, so that
on a CPU they are cut out and resized as bytes, several times as fast as the sampling that other maps need.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

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
    if augment is None:
        offset = (preprocessing.stored_size - preprocessing.size) // 2
        stop = offset + preprocessing.size
        return _normalized(squares[:, offset:stop, offset:stop], preprocessing)
    maps = affine_maps(count, preprocessing, augment, random)[own]
    if is_upright(augment) and squares.device.type == "cpu":
        images = _windows(squares, preprocessing.size, maps)
    else:
        images = _sample(squares, preprocessing.size, maps)
    return _normalized(_light(images, augment, random, own, count), preprocessing)


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


def _windows(squares: Tensor, size: int, maps: Tensor) -> Tensor:
    """Upright windows of squares `(B, S, S, 3)` as float32 `(B, size, size, 3)`; outside, the border is repeated.

    Resizing is shared out among as many threads as torch uses: it takes one thread for an image by itself.
    """
    stored = squares.shape[1]
    sides = (maps[:, 1, 1] * stored).round().long().tolist()
    starts = (((maps[:, :, 2] + 1) * stored - maps[:, 1, 1, None] * stored) / 2).round().long().tolist()

    def resized(numbers: range) -> list[Tensor]:
        windows = []
        for number in numbers:
            (left, top), side = starts[number], sides[number]
            window = _cut(squares[number], left, top, side)
            if side != size:
                # a batch of one that is whole in memory and known to be channels-last: resized as such, twice as fast
                batch = torch.from_numpy(np.ascontiguousarray(window.numpy()))[None].permute(0, 3, 1, 2)
                whole = F.interpolate(batch, size=(size, size), mode="bilinear", align_corners=False)
                window = whole[0].permute(1, 2, 0)
            windows.append(window)
        return windows

    count, threads = len(squares), torch.get_num_threads()
    step = -(-count // threads)
    parts = [range(first, min(first + step, count)) for first in range(0, count, step)]
    if len(parts) == 1 or all(side == size for side in sides):
        shown = iter([resized(part) for part in parts])
    else:
        with ThreadPoolExecutor(len(parts), "windows") as pool:
            shown = pool.map(resized, parts)
    images = torch.empty(count, size, size, 3)
    for image, window, mirror in zip(images, chain.from_iterable(shown), (maps[:, 0, 0] < 0).tolist(), strict=True):
        image.copy_(window.flip(1) if mirror else window)
    return images


def _cut(square: Tensor, left: int, top: int, side: int) -> Tensor:
    """The window of `side` pixels at `left`, `top` of a square `(S, S, 3)`, which it may overlap only in part."""
    stored = len(square)
    if 0 <= left <= stored - side and 0 <= top <= stored - side:
        return square[top : top + side, left : left + side]
    above, below = max(0, -top), min(side, stored - top)
    before, after = max(0, -left), min(side, stored - left)
    if above >= below or before >= after:  # beside the square altogether: nothing but its border
        rows, columns = np.arange(top, top + side), np.arange(left, left + side)
        return torch.from_numpy(square.numpy().take(rows, 0, mode="clip").take(columns, 1, mode="clip"))
    window = torch.empty(side, side, 3, dtype=square.dtype)
    inside = slice(above, below)
    window[inside, before:after] = square[top + above : top + below, left + before : left + after]
    window[inside, :before] = window[inside, before, None]
    window[inside, after:] = window[inside, after - 1, None]
    window[:above] = window[above]
    window[below:] = window[below - 1]
    return window


def _sample(squares: Tensor, size: int, maps: Tensor) -> Tensor:
    """Squares `(B, S, S, 3)` seen through any maps, as float32 `(B, size, size, 3)`."""
    images = squares.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(maps.to(images.device), [len(images), 3, size, size], align_corners=False)
    seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return seen.permute(0, 2, 3, 1)


def _light(images: Tensor, augment: AugmentRecipe, random: Generator | None, own: slice, count: int) -> Tensor:
    if not (augment.brightness or augment.contrast):
        return images
    images = images.float()
    draws = torch.rand(2, count, 1, 1, 1, generator=random)[:, own].to(images.device) * 2 - 1
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - middle) * (1 + augment.contrast * draws[0]) + middle + 255 * augment.brightness * draws[1]
    return images.clamp(0, 255)


def _normalized(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images `(B, H, W, 3)` in units of bytes to what a network takes; float32 ones are changed in place."""
    count, size = images.shape[:2]
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
    std = torch.tensor(preprocessing.std, dtype=torch.float64)
    scale = (1 / (255 * std)).float().repeat(size).to(images.device)
    shift = (mean / std).float().repeat(size).to(images.device)
    whole = images if images.dtype == torch.float32 and images.is_contiguous() else None
    out = torch.empty(count, size, size, 3, device=images.device) if whole is None else whole
    step = max(1, CHUNK // (3 * size * size)) if images.device.type == "cpu" else max(1, count)
    for at in range(0, count, step):
        part = out[at : at + step]
        if whole is None:
            part.copy_(images[at : at + step])
        part.view(-1, 3 * size).mul_(scale).sub_(shift)
    return out.permute(0, 3, 1, 2)
