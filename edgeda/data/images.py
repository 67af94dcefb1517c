"""Decode a domain once into squares of one size; what cannot be read is skipped, counted and listed."""

from __future__ import annotations

import errno
import hashlib
import logging
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from edgeda.data.cache import SquareCache
from edgeda.data.domains import Domain, Labels
from edgeda.data.squares import (
    Chosen,
    FileSquares,
    FileWriter,
    MemoryWriter,
    Passing,
    Squares,
    Stored,
    UsedSquares,
    Writer,
    reason,
)
from edgeda.data.texts import Texts, printable
from edgeda.errors import InputError
from edgeda.runtime.cores import usable_cores
from edgeda.runtime.preprocessing import Pixels, Preprocessing, square_pixels

log = logging.getLogger(__name__)

IN_MEMORY_BYTES = 4 * 2**30
AHEAD = 8
"""Images, for each core, that are decoded before they are asked for."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of a domain.

    `squares` uint8 RGB `(N, S, S, 3)`; `labels` int64 `(N,)` or None; `names` says where each image
    came from; `skipped` lists what could not be read, with the reason.
    """

    name: str
    squares: Squares
    labels: Labels | None
    classes: tuple[str, ...] | None
    names: Sequence[str]
    skipped: Sequence[str]

    def __len__(self) -> int:
        return len(self.squares)

    @property
    def decoded(self) -> bool:
        """Whether all images are decoded, rather than each one when it is used."""
        return not isinstance(self.squares, Stored) or self.squares.checksums is not None

    def take(self, indices: NDArray[np.int64]) -> ImageSet:
        """A subset, in the order of `indices`."""
        labels = None if self.labels is None else self.labels[indices]
        squares = Chosen(self.squares, indices) if isinstance(self.squares, Stored) else self.squares[indices]
        names = self.names if isinstance(self.names, Texts) else Texts.of(self.names)
        return ImageSet(self.name, squares, labels, self.classes, names.take(indices), self.skipped)

    def digest(self) -> bytes:
        """Of names, labels and pixels; of names and labels alone where images are decoded as they are used."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        if isinstance(self.squares, Stored):
            sums = self.squares.checksums
        else:
            sums = np.asarray(
                [zlib.crc32(np.ascontiguousarray(self.squares[at]).data) for at in range(len(self))], np.uint32
            )
        digest.update(b"" if sums is None else sums.astype(np.uint32).tobytes())
        return digest.digest()


def decode(
    domain: Domain,
    preprocessing: Preprocessing,
    what: str,
    limit: int | None = None,
    cache: SquareCache | None = None,
    ahead: int | None = None,
    warn: bool = True,
) -> ImageSet:
    """Read every item of a domain (or `limit` items spread over it) into an `ImageSet`.

    A domain of more than `ahead` items is decoded as it is used; `cache` keeps the squares of any other for the next
    run. Neither changes the images. Raises InputError when nothing could be read; `what` names the domain's part in
    the message, and in the warning of what was skipped, which `warn` can leave to the caller.
    """
    wanted = spread(len(domain), limit or len(domain))
    if ahead is not None and len(wanted) > ahead and not domain.sequential:
        log.info("%s: the %d images of %s are decoded as they are used (more than data.decode_ahead, %d)",
                 what, len(wanted), domain.name, ahead)  # fmt: skip
        skipped = list(domain.ignored)
        used = UsedSquares(domain, wanted, preprocessing, skipped)
        labels = None if domain.labels is None else domain.labels[wanted]
        return ImageSet(domain.name, used, labels, domain.classes, domain.names(wanted), skipped)

    def fill(writer: Writer) -> tuple[list[int], list[str]]:
        kept: list[int] = []
        unreadable: list[str] = []
        for index, result in _read_all(domain, wanted.tolist(), preprocessing):
            if isinstance(result, str):
                unreadable.append(result)
            else:
                writer.add(result)
                kept.append(index)
        if not kept:
            found = [*domain.ignored, *unreadable]
            first = f"; the first: {found[0]}" if found else ""
            raise InputError(f"the {what} {domain.name} has no readable image ({len(found)} skipped{first})")
        return kept, unreadable

    squares, kept, unreadable = _squares(domain, wanted, preprocessing, fill, cache)
    skipped = [*domain.ignored, *unreadable]
    if skipped and warn:
        warn_skipped(what, skipped, len(kept))
    labels = None if domain.labels is None else domain.labels[kept]
    return ImageSet(domain.name, squares, labels, domain.classes, domain.names(kept), tuple(skipped))


def warn_skipped(what: str, skipped: Sequence[str], kept: int) -> None:
    """A warning that names the first of the files that could not be used, beside how many were."""
    shown = "; ".join(skipped[:3]) + (f"; and {len(skipped) - 3} more" if len(skipped) > 3 else "")
    log.warning("%s: %d of %d files skipped: %s", what, len(skipped), len(skipped) + kept, shown)


def _squares(
    domain: Domain, wanted: NDArray[np.int64], preprocessing: Preprocessing,
    fill: Callable[[Writer], tuple[list[int], list[str]]], cache: SquareCache | None,
) -> tuple[Squares, NDArray[np.int64], list[str]]:  # fmt: skip
    """Squares, which items they are of, and why others are not among them: cached, in memory, or in a file."""

    def again(index: int) -> Pixels:
        return square_pixels(domain.read(index), preprocessing)

    stored: FileSquares | None = None
    side = preprocessing.stored_size
    try:
        stored = cache.squares(domain, wanted, preprocessing, fill) if cache else None
    except OSError as error:
        log.warning("%s: decoded images are not kept for other runs: %s", domain.name, reason(error))
    if stored is None and len(wanted) * side * side * 3 <= IN_MEMORY_BYTES:
        memory = MemoryWriter(len(wanted), side)
        kept, unreadable = fill(memory)
        return memory.finish(), np.asarray(kept, np.int64), unreadable
    if stored is None:  # a file without a name, gone when the run ends
        file = cast("BinaryIO", tempfile.TemporaryFile(prefix="edgeda-"))  # noqa: SIM115
        try:
            writer = FileWriter(file, len(wanted), side)
            stored = writer.finish(*fill(writer))
        except OSError as error:
            file.close()
            raise InputError(
                f"{reason(error)}: no room for {len(wanted)} decoded images of {domain.name} in "
                f"{tempfile.gettempdir()}; point TMPDIR to a larger disk, or set data.decode_ahead below {len(wanted)}"
            ) from error
    stored.repair = again
    return stored, stored.kept, stored.skipped


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` indices, evenly over `count` items."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _may_pass(cause: BaseException | None) -> bool:
    """Whether a file may be read another time as it is: the system refused it, and not for being gone."""
    return isinstance(cause, MemoryError) or getattr(cause, "errno", None) not in (None, errno.ENOENT)


def _read_all(domain: Domain, indices: list[int], preprocessing: Preprocessing) -> Iterator[tuple[int, Pixels | str]]:
    """Items in order with their squares, or with why there is none; several threads decode a little ahead."""

    def read(index: int) -> tuple[int, Pixels | str]:
        try:
            return index, square_pixels(domain.read(index), preprocessing)
        except InputError as error:
            why = printable(str(error))
            return index, Passing(why) if _may_pass(error.__cause__) else why

    if domain.sequential:
        yield from map(read, indices)
        return
    workers = usable_cores()
    coming = iter(indices)
    with ThreadPoolExecutor(workers, "decode") as pool:
        reading: deque[Future[tuple[int, Pixels | str]]] = deque(
            pool.submit(read, index) for index in islice(coming, AHEAD * workers)
        )
        while reading:
            done = reading.popleft().result()
            for index in islice(coming, 1):
                reading.append(pool.submit(read, index))
            yield done
