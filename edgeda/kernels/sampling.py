"""Stored squares seen through affine maps, their light changed, normalized: bytes in and a network's input out.

Coordinates and weights are those of torch's `affine_grid` and `grid_sample` (bilinear, the border repeated,
`align_corners=False`). A row of the output takes three loops: where its pixels lie, eight at once; their four
neighbours, each a word of four bytes; and all arithmetic, again eight at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeda.kernels.compiled import Kernel, available, language

WORTH_COMPILING = 2**19
"""Pixels of a batch's images from which on the kernel is used: below, a step takes less than compiling."""
ROWS = 10
"""Rows of words for the work on an image: places, 4 neighbours, weights across and down, sums of 3 colours."""
MOST_SIDE = 2**15
"""Larger squares have more bytes than 32 bits count."""


def can_sample(squares: Tensor, count: int, size: int) -> bool:
    """Whether `sample` can show squares of a batch of `count` as images of `size` pixels, and is worth compiling."""
    return (
        count * size * size >= WORTH_COMPILING
        and squares.device.type == "cpu"
        and squares.dtype == torch.uint8
        and 2 <= squares.shape[1] == squares.shape[2] < MOST_SIDE
        and sys.byteorder == "little"
        and available()
    )


def sample(squares: Tensor, maps: Tensor, light: Tensor, normal: Tensor, size: int) -> Tensor:
    """Squares uint8 `(B, S, S, 3)` as images float32 `(B, size, size, 3)`.

    `maps` float32 `(B, 2, 3)`; `light` float32 `(2, B)`: changes of contrast and brightness, `(0, B)`: none; `normal`
    float32 `(2, 3)`: what bytes are multiplied with and what is then added.
    """
    count, stored = squares.shape[:2]
    tensors = [each.contiguous() for each in (squares, maps, light, normal)]
    ramp, scratch = torch.arange(size, dtype=torch.float32), torch.empty(count, ROWS, size)
    out = torch.empty(count, size, size, 3)
    _kernel()(count, stored, size, len(light), *tensors, ramp, scratch, out)
    return out


@functools.cache
def _kernel() -> Kernel:
    """Its table: stored side, size, rows of light, squares, maps, light, normal, numbers of columns, scratch, out."""
    from numba import carray, float32, float64, int32, njit, uint32

    words = language()
    word, floats, integers = words.word, words.pointer["float32"], words.pointer["uint32"]
    zero, one, white = float32(0), float32(1), float32(255)
    inline: Callable[[Any], Any] = njit(forceinline=True)

    @inline
    def start(slopes: Any, row: Any, stored: Any, size: Any) -> Any:
        """Where the first pixel of a row lies along an axis, in pixels of the square."""
        u, v = 1.0 / size - 1.0, (2.0 * row + 1.0) / size - 1.0
        return float32(((slopes[0] * u + slopes[1] * v + slopes[2] + 1.0) * stored - 1.0) / 2.0)

    @inline
    def within(place: Any, last: Any) -> Any:
        """The nearest place inside the square; the first for what is no number."""
        place = place if place > zero else zero
        return place if place < last else last

    @inline
    def colour(pixel: Any, shift: Any) -> Any:
        return float32(int32((pixel >> uint32(shift)) & uint32(255)))

    @inline
    def between(first: Any, second: Any, weight: Any) -> Any:
        return first + weight * (second - first)

    def sample(table: Any, image: Any) -> None:
        count, stored, size, lit = table[1], table[2], table[3], table[4]
        maps = carray(floats(table[6]), (count, 2, 3))
        light = carray(floats(table[7]), (2, count))
        normal = carray(floats(table[8]), (2, 3))
        ramp = carray(floats(table[9]), (size,))
        out = carray(floats(table[11]), (count, size, size, 3))
        line = 3 * stored
        last, last_but_one = float32(stored - 1), float32(stored - 2)
        ratio = float64(stored) / size
        square, seen = table[5] + image * stored * line, out[image]
        row = 4 * size  # bytes
        scratch = table[10] + image * ROWS * row
        places = carray(integers(scratch), (size,))
        neighbours = carray(integers(scratch + row), (4, size))
        weights = carray(floats(scratch + 5 * row), (2, size))
        sums = carray(floats(scratch + 7 * row), (3 * size,))
        first, second, third, fourth = neighbours[0], neighbours[1], neighbours[2], neighbours[3]
        across, down = weights[0], weights[1]
        horizontal, vertical = maps[image, 0], maps[image, 1]
        step_x, step_y = float32(horizontal[0] * ratio), float32(vertical[0] * ratio)
        red, green, blue = (one, one, one) if lit else (normal[0, 0], normal[0, 1], normal[0, 2])
        more_red, more_green, more_blue = (zero, zero, zero) if lit else (normal[1, 0], normal[1, 1], normal[1, 2])
        for i in range(size):
            x0, y0 = start(horizontal, i, stored, size), start(vertical, i, stored, size)
            for j in range(size):
                x, y = within(x0 + step_x * ramp[j], last), within(y0 + step_y * ramp[j], last)
                left, top = int32(min(x, last_but_one)), int32(min(y, last_but_one))
                across[j], down[j] = x - float32(left), y - float32(top)
                places[j] = uint32(top * line + left * 3)
            for j in range(size):
                place = square + places[j]
                first[j], second[j] = word(place), word(place + 3)
                place += line - 1  # a byte early: a word from the last pixel on would end beyond the square
                third[j], fourth[j] = word(place), word(place + 3)
            pixels = seen[i]
            for j in range(size):
                x, y, a, b, c, d = across[j], down[j], first[j], second[j], third[j], fourth[j]
                upper, lower = between(colour(a, 0), colour(b, 0), x), between(colour(c, 8), colour(d, 8), x)
                pixels[j, 0] = between(upper, lower, y) * red + more_red
                upper, lower = between(colour(a, 8), colour(b, 8), x), between(colour(c, 16), colour(d, 16), x)
                pixels[j, 1] = between(upper, lower, y) * green + more_green
                upper, lower = between(colour(a, 16), colour(b, 16), x), between(colour(c, 24), colour(d, 24), x)
                pixels[j, 2] = between(upper, lower, y) * blue + more_blue
        if lit:
            values = carray(floats(table[11] + image * size * 3 * row), (size, 3 * size))
            for k in range(3 * size):
                sums[k] = zero
            for i in range(size):
                for k in range(3 * size):
                    sums[k] += values[i, k]
            total = 0.0
            for k in range(3 * size):
                total += sums[k]
            middle = float32(total / (3 * size * size))
            contrast, brightness = one + light[0, image], middle + white * light[1, image]
            for i in range(size):
                pixels = seen[i]
                for j in range(size):
                    value = within((pixels[j, 0] - middle) * contrast + brightness, white)
                    pixels[j, 0] = value * normal[0, 0] + normal[1, 0]
                    value = within((pixels[j, 1] - middle) * contrast + brightness, white)
                    pixels[j, 1] = value * normal[0, 1] + normal[1, 1]
                    value = within((pixels[j, 2] - middle) * contrast + brightness, white)
                    pixels[j, 2] = value * normal[0, 2] + normal[1, 2]

    return Kernel(sample)
