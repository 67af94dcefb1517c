"""BatchNorm of a batch's own statistics, with addition and ReLU behind it, reading memory half as often as torch.

Let x be `(B, C, H, W)`, m and v its mean and variance by channel, n = (x - m) / sqrt(v + eps). Forward:
y = max(w n + b + s, 0), where the shortcut s and the ReLU may be absent. Backward, with g the gradient of y where y > 0
and 0 elsewhere: dx = w / sqrt(v + eps) (g - mean(g) - n mean(g n)); dw = sum(g n); db = sum(g); ds = g.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edgeda.kernels.compiled import Kernel, available, language

CHUNK = 2**16
"""Values that a thread takes at a time."""
SHIFT_ROWS = 64
"""Pixels whose mean is subtracted before squares are summed, so that nothing cancels."""


class CompiledBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm by the kernels below, where they take its input."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        return normalize(self, input) if can_normalize(self, input) else super().forward(input)


def can_normalize(layer: nn.Module, images: Tensor, shortcut: Tensor | None = None) -> TypeGuard[CompiledBatchNorm2d]:
    """Whether `normalize` can take these: a layer in train mode, channels-last images on a CPU, in fp32 or bf16."""
    return (
        type(layer) is CompiledBatchNorm2d
        and layer.training
        and layer.affine
        and images.device.type == "cpu"
        and images.dtype in (torch.float32, torch.bfloat16)
        and images.is_contiguous(memory_format=torch.channels_last)
        and images.numel() > images.shape[1]
        and (shortcut is None or _alike(shortcut, images))
        and available()
    )


def normalize(
    layer: nn.BatchNorm2d, images: Tensor, rectify: bool = False, shortcut: Tensor | None = None, reuse: bool = False
) -> Tensor:
    """`layer(images) + shortcut`, rectified if so asked; all `(B, C, H, W)`.

    `reuse`: nobody else needs `images`, whose memory then holds the outcome where no gradients are wanted.
    """
    channels, scale = statistics(layer, images)
    if not torch.is_grad_enabled():
        return _normalized(images, channels, rectify, shortcut, images if reuse else torch.empty_like(images))
    result: Tensor = _Normalize.apply(images, layer.weight, layer.bias, shortcut, channels, scale, rectify)
    return result


def statistics(layer: nn.BatchNorm2d, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, slope w / sqrt(v + eps) and bias `(3, C)`; 1 / sqrt(v + eps), float64 `(C,)`. The running ones follow."""
    mean, variance = _moments(images)
    if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        share = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        count = images.numel() // images.shape[1]
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
        layer.running_var.lerp_((variance * (count / (count - 1))).to(layer.running_var.dtype), share)
    scale = torch.rsqrt(variance + layer.eps)
    with torch.no_grad():
        return torch.stack([mean, scale * layer.weight, layer.bias.double()]).float(), scale


def through_statistics(images: Tensor, channels: Tensor, scale: Tensor, summed: Tensor, by_distance: Tensor) -> Tensor:
    """What a gradient of sums `summed` of g and `by_distance` of g (x - mean) sends through mean and variance.

    Factors of x - mean, and constants: `(2, C)`.
    """
    slope, count = channels[1].double(), images.numel() // images.shape[1]
    return torch.stack([-slope * scale.square() * by_distance / count, -slope * summed / count]).float()


def in_order(gradient: Tensor, kind: torch.dtype) -> Tensor:
    """`gradient` in channels-last format and of a type, as kernels read it."""
    return gradient.to(kind).contiguous(memory_format=torch.channels_last)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, channels: Tensor,
        scale: Tensor, rectify: bool,
    ) -> Tensor:  # fmt: skip
        out = _normalized(images, channels, rectify, shortcut, torch.empty_like(images))
        ctx.rectify, ctx.adds = rectify, shortcut is not None
        ctx.save_for_backward(images, channels, scale, out if shortcut is not None and rectify else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        images, channels, scale, out = ctx.saved_tensors
        gradient = in_order(gradients[0], images.dtype)
        kernels = _kernels(images.dtype)
        sums = torch.empty(_chunks(images), 2, images.shape[1])
        masks = ctx.rectify
        if out is not None:
            passed = torch.empty_like(images)
            _run(kernels.sums_of_rectified, images, channels, gradient, sums, out, passed)
            gradient, masks = passed, False
        else:
            _run(kernels.sums, images, channels, gradient, sums, int(masks))
        summed, by_distance = sums.double().sum(0)
        inner = None
        if ctx.needs_input_grad[0]:
            through = through_statistics(images, channels, scale, summed, by_distance)
            inner = torch.empty_like(images)
            _run(kernels.gradient, images, channels, gradient, through, inner, int(masks))
        return inner, (by_distance * scale).float(), summed.float(), gradient if ctx.adds else None, None, None, None


def _normalized(images: Tensor, channels: Tensor, rectify: bool, shortcut: Tensor | None, out: Tensor) -> Tensor:
    kernels = _kernels(images.dtype)
    if shortcut is None:
        _run(kernels.normalize, images, channels, out, int(rectify))
    else:
        _run(kernels.normalize_and_add, images, channels, out, int(rectify), shortcut)
    return out


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (of the sample itself) of each channel, float64 `(C,)`."""
    channels = images.shape[1]
    rows = images.detach().permute(0, 2, 3, 1).reshape(-1, channels)
    shift = rows[:: max(1, len(rows) // SHIFT_ROWS)].float().mean(0)
    sums = torch.empty(_chunks(images), 2, channels)
    _run(_kernels(images.dtype).moments, images, shift, sums)
    first, second = sums.double().sum(0) / len(rows)
    return first + shift, (second - first.square()).clamp_min(0)


def _run(kernel: Kernel, images: Tensor, *values: int | Tensor) -> None:
    channels = images.shape[1]
    kernel(_chunks(images), images.numel() // channels, channels, _rows(channels), images, *values)


def _rows(channels: int) -> int:
    return max(4, CHUNK // channels)


def _chunks(images: Tensor) -> int:
    channels = images.shape[1]
    return -(-images.numel() // (channels * _rows(channels)))


def _alike(tensor: Tensor, images: Tensor) -> bool:
    return (
        tensor.dtype == images.dtype
        and tensor.shape == images.shape
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


@functools.cache
def _kernels(dtype: torch.dtype) -> SimpleNamespace:
    """The kernels for numbers of one type. Tables: chunks, pixels, channels, pixels of a chunk, x, then as named."""
    from numba import carray, float32

    words = language()
    name = str(dtype).removeprefix("torch.")
    load, store, values, floats = words.load[name], words.store[name], words.pointer[name], words.pointer["float32"]
    zero, nothing = float32(0), float32(-float("inf"))

    def moments(table: Any, chunk: Any) -> None:
        """shift `(C,)`; out: sums `(chunks, 2, C)` of x - shift and its square."""
        chunks, pixels, channels, rows = table[1], table[2], table[3], table[4]
        x = carray(values(table[5]), (pixels, channels))
        shift = carray(floats(table[6]), (channels,))
        sums = carray(floats(table[7]), (chunks, 2, channels))
        first, second = sums[chunk, 0], sums[chunk, 1]
        for c in range(channels):
            first[c] = zero
            second[c] = zero
        row, end = chunk * rows, min(pixels, chunk * rows + rows)
        while row + 4 <= end:
            for c in range(channels):
                one, two = load(x[row, c]) - shift[c], load(x[row + 1, c]) - shift[c]
                three, four = load(x[row + 2, c]) - shift[c], load(x[row + 3, c]) - shift[c]
                first[c] += (one + two) + (three + four)
                second[c] += (one * one + two * two) + (three * three + four * four)
            row += 4
        while row < end:
            for c in range(channels):
                one = load(x[row, c]) - shift[c]
                first[c] += one
                second[c] += one * one
            row += 1

    def normalize(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`, out, whether to rectify."""
        pixels, channels, rows = table[2], table[3], table[4]
        x = carray(values(table[5]), (pixels, channels))
        by_channel = carray(floats(table[6]), (3, channels))
        out = carray(values(table[7]), (pixels, channels))
        mean, slope, bias = by_channel[0], by_channel[1], by_channel[2]
        least = zero if table[8] else nothing
        for row in range(chunk * rows, min(pixels, chunk * rows + rows)):
            for c in range(channels):
                value = (load(x[row, c]) - mean[c]) * slope[c] + bias[c]
                out[row, c] = store(least if value < least else value)

    def normalize_and_add(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`, out, whether to rectify, shortcut."""
        pixels, channels, rows = table[2], table[3], table[4]
        x = carray(values(table[5]), (pixels, channels))
        by_channel = carray(floats(table[6]), (3, channels))
        out = carray(values(table[7]), (pixels, channels))
        shortcut = carray(values(table[9]), (pixels, channels))
        mean, slope, bias = by_channel[0], by_channel[1], by_channel[2]
        least = zero if table[8] else nothing
        for row in range(chunk * rows, min(pixels, chunk * rows + rows)):
            for c in range(channels):
                value = (load(x[row, c]) - mean[c]) * slope[c] + bias[c] + load(shortcut[row, c])
                out[row, c] = store(least if value < least else value)

    def sums(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`, gradient; out: sums `(chunks, 2, C)` of g, g (x - mean); rectified?"""
        chunks, pixels, channels, rows = table[1], table[2], table[3], table[4]
        x = carray(values(table[5]), (pixels, channels))
        by_channel = carray(floats(table[6]), (3, channels))
        gradient = carray(values(table[7]), (pixels, channels))
        sums = carray(floats(table[8]), (chunks, 2, channels))
        mean, slope, bias = by_channel[0], by_channel[1], by_channel[2]
        least = zero if table[9] else nothing
        first, second = sums[chunk, 0], sums[chunk, 1]
        for c in range(channels):
            first[c] = zero
            second[c] = zero
        row, end = chunk * rows, min(pixels, chunk * rows + rows)
        while row + 2 <= end:
            for c in range(channels):
                one, two = load(x[row, c]) - mean[c], load(x[row + 1, c]) - mean[c]
                above, below = load(gradient[row, c]), load(gradient[row + 1, c])
                above = above if one * slope[c] + bias[c] > least else zero
                below = below if two * slope[c] + bias[c] > least else zero
                first[c] += above + below
                second[c] += above * one + below * two
            row += 2
        while row < end:
            for c in range(channels):
                one = load(x[row, c]) - mean[c]
                above = load(gradient[row, c])
                above = above if one * slope[c] + bias[c] > least else zero
                first[c] += above
                second[c] += above * one
            row += 1

    def sums_of_rectified(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`, gradient; out: sums as above; y; out: g."""
        chunks, pixels, channels, rows = table[1], table[2], table[3], table[4]
        x = carray(values(table[5]), (pixels, channels))
        mean = carray(floats(table[6]), (channels,))
        gradient = carray(values(table[7]), (pixels, channels))
        sums = carray(floats(table[8]), (chunks, 2, channels))
        y = carray(values(table[9]), (pixels, channels))
        passed = carray(values(table[10]), (pixels, channels))
        first, second = sums[chunk, 0], sums[chunk, 1]
        for c in range(channels):
            first[c] = zero
            second[c] = zero
        for row in range(chunk * rows, min(pixels, chunk * rows + rows)):
            for c in range(channels):
                slope = load(gradient[row, c])
                slope = slope if load(y[row, c]) > zero else zero
                passed[row, c] = store(slope)
                first[c] += slope
                second[c] += slope * (load(x[row, c]) - mean[c])

    def gradient(table: Any, chunk: Any) -> None:
        """mean, slope and bias `(3, C)`, gradient, factors of x - mean and constants `(2, C)`; out: dx; rectified?"""
        pixels, channels, rows = table[2], table[3], table[4]
        x = carray(values(table[5]), (pixels, channels))
        by_channel = carray(floats(table[6]), (3, channels))
        gradient = carray(values(table[7]), (pixels, channels))
        through = carray(floats(table[8]), (2, channels))
        inner = carray(values(table[9]), (pixels, channels))
        mean, slope, bias = by_channel[0], by_channel[1], by_channel[2]
        by_distance, constant = through[0], through[1]
        least = zero if table[10] else nothing
        for row in range(chunk * rows, min(pixels, chunk * rows + rows)):
            for c in range(channels):
                distance = load(x[row, c]) - mean[c]
                passed = load(gradient[row, c])
                passed = passed if distance * slope[c] + bias[c] > least else zero
                inner[row, c] = store(passed * slope[c] + (distance * by_distance[c] + constant[c]))

    functions = (moments, normalize, normalize_and_add, sums, sums_of_rectified, gradient)
    return SimpleNamespace(**{function.__name__: Kernel(function) for function in functions})
