"""Decode a domain once into squares of one size; what cannot be read is skipped, counted and listed."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeda.data.domains import Domain, Labels
from edgeda.errors import InputError
from edgeda.runtime.preprocessing import Pixels, Preprocessing, square_pixels

log = logging.getLogger(__name__)

IN_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of a domain.

    `squares` uint8 RGB `(N, S, S, 3)`; `labels` int64 `(N,)` or None; `names` says where each image
    came from; `skipped` lists what could not be read, with the reason.
    """

    name: str
    squares: Pixels
    labels: Labels | None
    classes: tuple[str, ...] | None
    names: tuple[str, ...]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.squares)

    def take(self, indices: NDArray[np.int64]) -> ImageSet:
        """A subset, in the order of `indices`."""
        labels = None if self.labels is None else self.labels[indices]
        names = tuple(self.names[index] for index in indices)
        return ImageSet(self.name, self.squares[indices], labels, self.classes, names, self.skipped)


def decode(domain: Domain, preprocessing: Preprocessing, what: str, limit: int | None = None) -> ImageSet:
    """Read every item of a domain (or `limit` items spread over it) into an `ImageSet`.

    Raises InputError when nothing could be read; `what` names the domain's part in the message.
    """
    wanted = spread(len(domain), limit or len(domain))
    side = preprocessing.stored_size
    squares = _allocate((len(wanted), side, side, 3))
    skipped = list(domain.ignored)
    kept: list[int] = []
    for index, result in _read_all(domain, wanted.tolist(), preprocessing):
        if isinstance(result, str):
            skipped.append(result)
        else:
            squares[len(kept)] = result
            kept.append(index)
    if not kept:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise InputError(f"the {what} {domain.name} has no readable image ({len(skipped)} skipped{first})")
    if skipped:
        shown = "; ".join(skipped[:3]) + (f"; and {len(skipped) - 3} more" if len(skipped) > 3 else "")
        log.warning("%s: %d of %d files skipped: %s", what, len(skipped), len(skipped) + len(kept), shown)
    labels = None if domain.labels is None else domain.labels[kept]
    names = tuple(domain.item(index) for index in kept)
    return ImageSet(domain.name, squares[: len(kept)], labels, domain.classes, names, tuple(skipped))


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` indices, evenly over `count` items."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _read_all(
    domain: Domain, indices: Iterable[int], preprocessing: Preprocessing
) -> Iterator[tuple[int, Pixels | str]]:
    def read(index: int) -> tuple[int, Pixels | str]:
        try:
            return index, square_pixels(domain.read(index), preprocessing)
        except InputError as error:
            return index, str(error).encode("utf-8", "backslashreplace").decode("utf-8")

    if domain.sequential:
        yield from map(read, indices)
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        yield from pool.map(read, indices)


def _allocate(shape: tuple[int, ...]) -> Pixels:
    """Memory for decoded images: RAM, or an unnamed temporary file once it would be large."""
    if int(np.prod(shape)) <= IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(prefix="edgeda-") as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
