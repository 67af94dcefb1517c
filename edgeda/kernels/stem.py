"""The stem of a ResNet behind its convolution: BatchNorm, ReLU and 3x3 max pooling by 2, without the tensors between.

y = max over each window of max(w n + b, 0), n as in `edgeda.kernels.batchnorm`. What is kept of it for the backward
pass is one byte an output: the place in the window, or NOWHERE where y is 0.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edgeda.kernels.batchnorm import CompiledBatchNorm2d, can_normalize, in_order, statistics, through_statistics
from edgeda.kernels.compiled import Kernel, language

NOWHERE = 9


def can_pool(layer: nn.Module, pool: nn.MaxPool2d, images: Tensor) -> TypeGuard[CompiledBatchNorm2d]:
    """Whether `normalize_and_pool` can take these."""
    window = [pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices]
    return window == [3, 2, 1, 1, False, False] and can_normalize(layer, images)


def normalize_and_pool(layer: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B, C, ceil(H / 2), ceil(W / 2))`: layer, ReLU, max pooling."""
    channels, scale = statistics(layer, images)
    result: Tensor = _Pool.apply(images, layer.weight, layer.bias, channels, scale)
    return result


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, channels: Tensor, scale: Tensor) -> Tensor:
        batch, count, height, width = images.shape
        size = (batch, count, (height + 1) // 2, (width + 1) // 2)
        out = images.new_empty(size).contiguous(memory_format=torch.channels_last)
        places = torch.empty(batch, *size[2:], count, dtype=torch.uint8)
        _run(_kernels(images.dtype).pool, images, channels, out, places)
        ctx.save_for_backward(images, channels, scale, places)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        images, channels, scale, places = ctx.saved_tensors
        gradient = in_order(gradients[0], images.dtype)
        kernels = _kernels(images.dtype)
        sums = torch.empty(len(places) * places.shape[1], 2, images.shape[1])
        _run(kernels.sums, images, channels, gradient, places, sums)
        summed, by_distance = sums.double().sum(0)
        inner = None
        if ctx.needs_input_grad[0]:
            inner = torch.empty_like(images)
            through = through_statistics(images, channels, scale, summed, by_distance)
            _run(kernels.gradient, images, channels, gradient, places, through, inner)
        return inner, (by_distance * scale).float(), summed.float(), None, None


def _run(kernel: Kernel, images: Tensor, *values: Tensor) -> None:
    batch, channels, height, width = images.shape
    kernel(batch * ((height + 1) // 2), height, width, channels, images, *values)


@functools.cache
def _kernels(dtype: torch.dtype) -> SimpleNamespace:
    """The kernels for numbers of one type. Tables: chunks (rows of y), height, width, channels, x, then as named."""
    import numpy as np
    from numba import carray, float32, int32, uint8

    words = language()
    name = str(dtype).removeprefix("torch.")
    load, store = words.load[name], words.store[name]
    values, floats, bytes_ = words.pointer[name], words.pointer["float32"], words.pointer["uint8"]
    zero, nothing = float32(0), float32(-float("inf"))

    def pool(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`; out: y, places."""
        chunks, height, width, channels = table[1], table[2], table[3], table[4]
        down, across = (height + 1) // 2, (width + 1) // 2
        x = carray(values(table[5]), (chunks // down, height, width, channels))
        by_channel = carray(floats(table[6]), (3, channels))
        out = carray(values(table[7]), (chunks, across, channels))
        places = carray(bytes_(table[8]), (chunks, across, channels))
        mean, slope, bias = by_channel[0], by_channel[1], by_channel[2]
        best, at = np.empty(channels, np.float32), np.empty(channels, np.int32)
        rows = np.full((3, width + 2, channels), nothing)
        image, top = chunk // down, 2 * (chunk % down) - 1
        for r in range(3):
            for column in range(width):
                normalized = rows[r, column + 1]
                if top + r < 0 or top + r >= height:
                    for c in range(channels):
                        normalized[c] = nothing
                else:
                    pixel = x[image, top + r, column]
                    for c in range(channels):
                        normalized[c] = (load(pixel[c]) - mean[c]) * slope[c] + bias[c]
        for column in range(across):
            for c in range(channels):
                best[c] = zero
                at[c] = NOWHERE
            for r in range(3):
                left, middle, right = rows[r, 2 * column], rows[r, 2 * column + 1], rows[r, 2 * column + 2]
                here = int32(3 * r)
                for c in range(channels):
                    value, place = best[c], at[c]
                    one, two, three = left[c], middle[c], right[c]
                    place = here if (one > value) | (one != one) else place
                    value = one if (one > value) | (one != one) else value
                    place = here + int32(1) if (two > value) | (two != two) else place
                    value = two if (two > value) | (two != two) else value
                    place = here + int32(2) if (three > value) | (three != three) else place
                    value = three if (three > value) | (three != three) else value
                    best[c] = value
                    at[c] = place
            y, placed = out[chunk, column], places[chunk, column]
            for c in range(channels):
                y[c] = store(best[c])
                placed[c] = uint8(at[c])

    def sums(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`, gradient, places; out: sums `(chunks, 2, C)` of g and g (x - mean)."""
        chunks, height, width, channels = table[1], table[2], table[3], table[4]
        down, across = (height + 1) // 2, (width + 1) // 2
        x = carray(values(table[5]), (chunks // down, height, width, channels))
        mean = carray(floats(table[6]), (channels,))
        gradient = carray(values(table[7]), (chunks, across, channels))
        places = carray(bytes_(table[8]), (chunks, across, channels))
        sums = carray(floats(table[9]), (chunks, 2, channels))
        first, second = sums[chunk, 0], sums[chunk, 1]
        for c in range(channels):
            first[c] = zero
            second[c] = zero
        image, top = chunk // down, 2 * (chunk % down) - 1
        for column in range(across):
            passed, place = gradient[chunk, column], places[chunk, column]
            for tap in range(9):
                row, left = top + tap // 3, 2 * column - 1 + tap % 3
                if row < 0 or row >= height or left < 0 or left >= width:
                    continue
                pixel, here = x[image, row, left], uint8(tap)
                for c in range(channels):
                    value = load(passed[c])
                    value = value if place[c] == here else zero
                    first[c] += value
                    second[c] += value * (load(pixel[c]) - mean[c])

    def gradient(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`, gradient, places, factors of x - mean and constants `(2, C)`; out: dx."""
        chunks, height, width, channels = table[1], table[2], table[3], table[4]
        down, across = (height + 1) // 2, (width + 1) // 2
        x = carray(values(table[5]), (chunks // down, height, width, channels))
        by_channel = carray(floats(table[6]), (3, channels))
        gradient = carray(values(table[7]), (chunks // down, down, across, channels))
        places = carray(bytes_(table[8]), (chunks // down, down, across, channels))
        through = carray(floats(table[9]), (2, channels))
        inner = carray(values(table[10]), (chunks // down, height, width, channels))
        mean, slope = by_channel[0], by_channel[1]
        by_distance, constant = through[0], through[1]
        total = np.empty(channels, np.float32)
        image, first = chunk // down, 2 * (chunk % down)
        for row in range(first, min(first + 2, height)):
            for column in range(width):
                pixel, result = x[image, row, column], inner[image, row, column]
                # windows that see this pixel: those that begin at 2 r - 1, r from row / 2 to (row + 1) / 2
                up, left = row // 2, column // 2
                lower, right = min((row + 1) // 2, down - 1), min((column + 1) // 2, across - 1)
                for c in range(channels):
                    total[c] = (load(pixel[c]) - mean[c]) * by_distance[c] + constant[c]
                for r in range(up, lower + 1):
                    for q in range(left, right + 1):
                        here = uint8(3 * (row - 2 * r + 1) + column - 2 * q + 1)
                        passed, place = gradient[image, r, q], places[image, r, q]
                        for c in range(channels):
                            value = load(passed[c])
                            value = value if place[c] == here else zero
                            total[c] += value * slope[c]
                for c in range(channels):
                    result[c] = store(total[c])

    return SimpleNamespace(**{function.__name__: Kernel(function) for function in (pool, sums, gradient)})
