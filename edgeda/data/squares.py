"""Decoded squares, wherever they lie: in memory, in a file, chosen from others, or decoded as they are used."""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeda.data.domains import Domain, Labels
from edgeda.data.texts import printable
from edgeda.errors import InputError, one_line
from edgeda.runtime.cores import usable_cores
from edgeda.runtime.preprocessing import Pixels, Preprocessing, square_pixels

log = logging.getLogger(__name__)

MAGIC = b"edgeda squares 1"
_TRAILER = struct.Struct("<16sQQQI")
"""Magic, images, side, bytes of the footer, the footer's CRC-32: the file's last bytes."""
MOST_BAD = 1000
"""Unreadable images in a row, of a domain decoded as it is used, after which something is wrong with all of it."""


class Passing(str):
    """Why an item cannot be read now, though there may be nothing wrong with it."""


class Squares(Protocol):
    """uint8 RGB `(N, S, S, 3)`, read by slices or by arrays of indices: an array, or one of the classes below."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Stored(ABC):
    """Squares outside memory. `[slice]` and `[indices]` give a new array; more indices apply to that array."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: NDArray[np.int64]) -> Pixels:
        """The squares at some places."""

    @property
    @abstractmethod
    def checksums(self) -> NDArray[np.uint32] | None:
        """CRC-32 of each square, or None when that is not known without decoding all."""

    def __getitem__(self, index: Any, /) -> Pixels:
        first, *rest = index if isinstance(index, tuple) else (index,)
        places = np.arange(len(self))[first]
        found = self.read(np.atleast_1d(places))
        return found[(slice(None), *rest)] if np.ndim(places) else found[(0, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)


class Chosen(Stored):
    """Some of other squares, in the order of `indices`; nothing is copied."""

    def __init__(self, squares: Stored, indices: NDArray[np.int64]) -> None:
        self._squares, self._indices = squares, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: NDArray[np.int64]) -> Pixels:
        return self._squares.read(self._indices[indices])

    @property
    def checksums(self) -> NDArray[np.uint32] | None:
        found = self._squares.checksums
        return None if found is None else found[self._indices]


class FileSquares(Stored):
    """Squares in a file, memory-mapped. A square's checksum is looked at when it is first read.

    `repair` gives a square anew when its bytes are not those that were written; `spoilt` is told so once.
    The file stays open, and locked by whoever opened it, as long as the squares are used.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Raises ValueError for a file that `FileWriter` did not finish."""
        size = os.fstat(file.fileno()).st_size
        if size < _TRAILER.size:
            raise ValueError("it is too short")
        file.seek(size - _TRAILER.size)
        magic, count, side, length, checksum = _TRAILER.unpack(file.read(_TRAILER.size))
        pixels = count * side * side * 3
        if magic != MAGIC or not count or pixels + length + _TRAILER.size != size:
            raise ValueError("it is not whole")
        file.seek(pixels)
        footer = file.read(length)
        if zlib.crc32(footer) != checksum:
            raise ValueError("its index has changed")
        self.kept = np.frombuffer(footer, np.int64, count)
        """Which items of the domain the squares are of."""
        self._checksums = np.frombuffer(footer, np.uint32, count, offset=8 * count)
        self.skipped: list[str] = json.loads(footer[12 * count :])
        """Why each of the other items could not be read."""
        mapped = mmap.mmap(file.fileno(), pixels, access=mmap.ACCESS_READ)
        weakref.finalize(self, file.close)
        self._squares = np.frombuffer(mapped, np.uint8).reshape(count, side, side, 3)
        self._checked = np.zeros(count, bool)
        self._repaired: dict[int, Pixels] = {}
        self.repair: Callable[[int], Pixels] | None = None
        self.spoilt: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def checksums(self) -> NDArray[np.uint32]:
        return self._checksums

    def read(self, indices: NDArray[np.int64]) -> Pixels:
        found: Pixels = self._squares[indices]
        for place in np.flatnonzero(~self._checked[indices]).tolist():
            index = int(indices[place])
            if index in self._repaired:
                found[place] = self._repaired[index]
            elif zlib.crc32(found[place].data) == self._checksums[index]:
                self._checked[index] = True
            else:
                found[place] = self._again(index)
        return found

    def _again(self, index: int) -> Pixels:
        if not self._repaired:
            self.spoilt()
        if self.repair is None:
            raise InputError("decoded images have changed on disk; start again")
        square = self.repair(int(self.kept[index]))
        if zlib.crc32(square.data) != self._checksums[index]:
            log.warning("an image has changed since it was decoded, and its decoded copy is damaged: using the new one")
        self._repaired[index] = square
        return square


class FileWriter:
    """Writes squares to a file that `FileSquares` reads; OSError when the disk does not take them."""

    def __init__(self, file: BinaryIO, most: int, side: int) -> None:
        self._file, self._side, self._checksums = file, side, np.empty(most, np.uint32)
        self._count = 0
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file.fileno(), 0, stored_bytes(most, side))  # a full disk shows now, not after an hour

    def add(self, square: Pixels) -> None:
        """The next square."""
        data = np.ascontiguousarray(square)
        self._file.write(data.data)
        self._checksums[self._count] = zlib.crc32(data.data)
        self._count += 1

    def finish(self, kept: list[int], skipped: Sequence[str]) -> FileSquares:
        """The file as squares, written to the disk; ValueError when nothing was kept."""
        footer = np.asarray(kept, np.int64).tobytes() + self._checksums[: self._count].tobytes()
        footer += json.dumps(list(skipped)).encode()
        self._file.write(footer)
        self._file.write(_TRAILER.pack(MAGIC, self._count, self._side, len(footer), zlib.crc32(footer)))
        self._file.flush()
        self._file.truncate()
        os.fsync(self._file.fileno())
        return FileSquares(self._file)


class Writer(Protocol):
    """What squares are decoded into."""

    def add(self, square: Pixels) -> None:
        """The next square."""


class MemoryWriter:
    """Puts squares into one array."""

    def __init__(self, most: int, side: int) -> None:
        self._squares = np.empty((most, side, side, 3), np.uint8)
        self._count = 0

    def add(self, square: Pixels) -> None:
        """The next square."""
        self._squares[self._count] = square
        self._count += 1

    def finish(self) -> Pixels:
        """The array."""
        return self._squares[: self._count]


class UsedSquares(Stored):
    """Items of a domain, each decoded every time it is used, by several threads.

    An item that cannot be read is replaced by the next one that can, of the same class where there are labels, and
    noted in `skipped`.
    """

    def __init__(
        self, domain: Domain, indices: NDArray[np.int64], preprocessing: Preprocessing, skipped: list[str]
    ) -> None:
        self._domain, self._indices, self._preprocessing, self.skipped = domain, indices, preprocessing, skipped
        self._labels: Labels | None = None if domain.labels is None else domain.labels[indices]
        self._instead: dict[int, int] = {}
        self._pool = ThreadPoolExecutor(usable_cores(), "decode")

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def checksums(self) -> None:
        return None

    def read(self, indices: NDArray[np.int64]) -> Pixels:
        side = self._preprocessing.stored_size
        found = np.empty((len(indices), side, side, 3), np.uint8)

        def one(place: int) -> None:
            found[place] = self._readable(int(indices[place]))

        for _ in self._pool.map(one, range(len(indices))):
            pass
        return found

    def _readable(self, wanted: int) -> Pixels:
        index = self._instead.get(wanted, wanted)
        for _ in range(MOST_BAD):
            try:
                square = square_pixels(self._domain.read(int(self._indices[index])), self._preprocessing)
            except InputError as error:
                self._note(str(error))
                index = self._next(index)
                continue
            if index != wanted:
                self._instead[wanted] = index
            return square
        raise InputError(
            f"{MOST_BAD} images of {self._domain.name} in a row cannot be read; the last: {self.skipped[-1]}"
        )

    def _next(self, index: int) -> int:
        following = (index + 1) % len(self)
        if self._labels is not None:
            same = np.flatnonzero(self._labels == self._labels[index])
            following = int(same[np.searchsorted(same, index, "right") % len(same)])
        return following

    def _note(self, reason: str) -> None:
        reason = printable(reason)
        if reason not in self.skipped:
            self.skipped.append(reason)
            log.warning("%s: another image takes its place: %s", self._domain.name, reason)


def stored_bytes(count: int, side: int) -> int:
    """Bytes of so many squares with their index, without what is said of skipped files."""
    return count * (side * side * 3 + 12) + _TRAILER.size


def reason(error: OSError) -> str:
    """What the system says, without a path."""
    return error.strerror or one_line(error)
