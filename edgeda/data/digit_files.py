"""Digits in the files they were published in: MNIST's idx, both texts of USPS, SVHN's .mat."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.data.domains import Labels
from edgeda.errors import InputError, one_line, require

Pixels = NDArray[np.uint8]
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error)
MOST_BYTES = 128 * 2**20
"""Of a file once it is unpacked; MNIST has 47 MB, USPS 22 MB."""
_IDX_LABELS, _IDX_IMAGES = 0x0801, 0x0803


def read_digits(files: Sequence[Path]) -> tuple[Pixels, Labels]:
    """Images uint8 `(N, H, W)` or `(N, H, W, 3)` and digits int64 `(N,)` of a published file, or of MNIST's pair.

    Raises InputError naming the file and what is wrong with it.
    """
    first = files[0]
    if first.suffix == ".mat":
        images, labels = _svhn(first)
    elif first.suffix == ".bz2":
        images, labels = _usps_sparse(first)
    elif len(files) == 2:
        images, labels = _idx(first, 3), _idx(files[1], 1).astype(np.int64)
    else:
        images, labels = _usps_text(first)
    if len(images) != len(labels):
        raise InputError(f"{first} has {len(images)} images, {files[-1].name} has {len(labels)} labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
        raise InputError(f"{files[-1]} has labels from {labels.min()} to {labels.max()}; digits are 0 to 9")
    return images, labels


def _idx(path: Path, dimensions: int) -> Pixels:
    """MNIST's format: a magic number, sizes as big-endian 32-bit integers, bytes."""
    try:
        content = _content(path)
    except _UNREADABLE as error:
        raise InputError(f"{path} is not MNIST as published (gzipped idx): {one_line(error)}") from error
    header = np.frombuffer(content[: 4 + 4 * dimensions], ">u4") if len(content) >= 4 + 4 * dimensions else None
    if header is None or header[0] != (_IDX_IMAGES if dimensions == 3 else _IDX_LABELS):
        raise InputError(f"{path} is not MNIST as published (idx{dimensions}-ubyte): its header is another")
    shape = tuple(int(size) for size in header[1:])
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(body) != np.prod(shape, dtype=np.int64):
        wanted = " x ".join(map(str, shape))
        raise InputError(f"{path} is not complete: {len(body)} bytes follow a header that says {wanted}")
    return body.reshape(shape)


def _content(path: Path) -> bytes:
    """A file unpacked; ValueError when there is more of it than MOST_BYTES."""
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opener(path, "rb") as opened:
        content: bytes = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES // 2**20} MB when unpacked")
    return content


def _usps_text(path: Path) -> tuple[Pixels, Labels]:
    """zip.train.gz: a line is the digit and 256 greys from -1 (paper) to 1 (ink)."""
    try:
        rows = np.loadtxt(io.StringIO(_content(path).decode("ascii")), dtype=np.float32, ndmin=2)
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is not USPS as published (gzipped lines of label and 256 values): {one_line(error)}"
        ) from error
    if rows.shape[1] != 257:
        raise InputError(f"{path} has {rows.shape[1]} values a line; USPS has 257")
    return _usps_pixels(rows[:, 1:]), rows[:, 0].astype(np.int64)


def _usps_sparse(path: Path) -> tuple[Pixels, Labels]:
    """usps.bz2 of LIBSVM: a line is the digit plus one and `index:value` pairs, index 1 to 256; absent ones are 0."""
    try:
        lines = [line.split() for line in _content(path).decode("ascii").splitlines() if line.strip()]
        labels = np.asarray([int(float(line[0])) for line in lines], np.int64) - 1
        greys = np.zeros((len(lines), 257), np.float32)
        for row, line in enumerate(lines):
            for index, value in (pair.split(":") for pair in line[1:]):
                greys[row, int(index)] = float(value)
    except (*_UNREADABLE, IndexError) as error:
        raise InputError(
            f"{path} is not USPS as published (bzip2 lines of label and index:value): {one_line(error)}"
        ) from error
    return _usps_pixels(greys[:, 1:]), labels


def _usps_pixels(greys: NDArray[np.float32]) -> Pixels:
    pixels: Pixels = np.clip(np.rint((greys + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return pixels.reshape(-1, 16, 16)


def _svhn(path: Path) -> tuple[Pixels, Labels]:
    """SVHN, format 2: X uint8 `(32, 32, 3, N)`, y `(N, 1)` with 10 for the digit 0."""
    scipy_io: Any = require("scipy.io", "data", "SVHN's .mat files")
    try:
        found = scipy_io.loadmat(path, variable_names=["X", "y"])
        pixels, labels = np.asarray(found["X"]), np.asarray(found["y"]).reshape(-1).astype(np.int64)
    except Exception as error:
        raise InputError(f"{path} is not SVHN as published (MATLAB arrays X and y): {one_line(error)}") from error
    if pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.dtype != np.uint8:
        raise InputError(f"{path} has X of {pixels.dtype} {pixels.shape}; SVHN has uint8 (32, 32, 3, N)")
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), np.where(labels == 10, 0, labels)
