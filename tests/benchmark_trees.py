"""Small trees and files laid out as the benchmark data sets are published."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeda.data.catalogue import BENCHMARKS, Benchmark


def shrink(monkeypatch: pytest.MonkeyPatch, name: str, images: int, classes: int | None = None) -> Benchmark:
    """A data set as if only so many images of each domain, and its first classes, had been published."""
    full = BENCHMARKS[name]
    parts = tuple(replace(part, images=images) for part in full.parts)
    small = replace(full, parts=parts, classes=full.classes[:classes])
    monkeypatch.setitem(BENCHMARKS, name, small)
    return small


def grey_image(path: Path, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
    return path


def class_tree(folder: Path, classes: Sequence[str], each: int = 1) -> Path:
    """`folder/<class>/<number>.png`, a grey of its own for each class."""
    for index, name in enumerate(classes):
        for number in range(each):
            grey_image(folder / name / f"{number}.png", 10 * index)
    return folder


def clef_domain(base: Path, name: str, labels: Sequence[int], prefix: str = "") -> None:
    """`base/<name>/<number>.png` and `base/list/<name>List.txt`; the grey of an image is ten times its label."""
    (base / "list").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, label in enumerate(labels):
        grey_image(base / name / f"{number}.png", 10 * label)
        lines.append(f"{prefix}{name}/{number}.png {label}\n")
    (base / "list" / f"{name}List.txt").write_text("".join(lines))


def idx(path: Path, values: np.ndarray) -> Path:
    """MNIST's format: 0, 0, 8 (bytes), number of dimensions, sizes as big-endian 32-bit integers, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mnist(folder: Path, stem: str, images: np.ndarray, labels: Sequence[int], suffix: str = ".gz") -> None:
    idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
    idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.asarray(labels))


def usps_gz(path: Path, labels: Sequence[int], greys: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(labels, greys, strict=True)
    lines = [f"{label:.4f} " + " ".join(f"{value:.3f}" for value in row) + " \n" for label, row in rows]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return path


def usps_bz2(path: Path, labels: Sequence[int], greys: np.ndarray) -> Path:
    """LIBSVM: labels one higher, indices from 1, zeros left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for label, row in zip(labels, greys, strict=True):
        pairs = (f"{index}:{value:.3f}" for index, value in enumerate(row, 1) if value)
        lines.append(f"{label + 1} {' '.join(pairs)} \n")
    path.write_bytes(bz2.compress("".join(lines).encode()))
    return path
