"""Decoded squares kept between runs: one file for the images of a domain in one geometry.

An entry is named by a digest of what decides its pixels: format, geometry, the decoder's version, and path, size and
time of change of every file. It is written under a name of its own and renamed when it is whole. Locks are `flock`'s,
which end with their process: exclusive on an entry that is being written, shared on one in use, exclusive on the
folder while room is made. A second run that wants the same images waits for the first to have decoded them.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from edgeda.data.domains import Domain
from edgeda.data.squares import FileSquares, FileWriter, Passing, Writer, stored_bytes
from edgeda.runtime.preprocessing import Preprocessing
from edgeda.user_cache import cache_folder

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when `square_pixels` or the file's layout changes."""
ENTRY, PART = ".squares", ".part"
RESERVE = 256 * 2**20
"""Bytes of the disk that are left free."""
Fill = Callable[[Writer], tuple[list[int], list[str]]]
"""Decodes into a writer; returns which items were kept, and why the others were not."""


class NoRoom(OSError):
    """The images need more than the cache may take."""


class SquareCache:
    """A folder of entries of at most `limit` bytes in all; those used longest ago make room for new ones."""

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._limit, self._folder = limit, folder or cache_folder() / "squares"

    def squares(
        self, domain: Domain, wanted: NDArray[np.int64], preprocessing: Preprocessing, fill: Fill
    ) -> FileSquares | None:
        """Items of a domain, decoded by `fill` first if they are not in the cache.

        None for a domain that needs none. Raises OSError when the disk does not take them.
        """
        stamp = domain.stamp(wanted) if self._limit else None
        if stamp is None:
            return None
        place = self._folder / f"{_key(stamp, preprocessing)}{ENTRY}"
        while (found := self._open(place)) is None:
            part = self._claim(place)
            if part:
                found = self._make(place, part, domain, wanted, preprocessing.stored_size, fill, stamp)
                break
        found.spoilt = lambda: self._spoilt(place, "the checksum of an image is wrong")
        return found

    def _open(self, place: Path) -> FileSquares | None:
        try:
            file = place.open("rb")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            found = FileSquares(file)
        except ValueError as error:
            file.close()
            self._spoilt(place, str(error))
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(place)
        return found

    def _spoilt(self, place: Path, why: str) -> None:
        log.warning("cached images are damaged (%s: %s): decoding them again", place, why)
        place.unlink(missing_ok=True)

    def _claim(self, place: Path) -> BinaryIO | None:
        """The entry to be written, locked for this process alone; None when another has written it meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = place.with_suffix(PART)
        while not place.exists():
            part = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another run is decoding the same images: waiting for it")
                fcntl.flock(part, fcntl.LOCK_SH)  # to be had when it has finished or died
                part.close()
                continue
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(part.fileno()), path.stat()):
                    part.truncate(0)  # what a run that was killed has left
                    return part
            part.close()  # renamed or removed between two of these lines
        return None

    def _make(
        self, place: Path, part: BinaryIO, domain: Domain, wanted: NDArray[np.int64], side: int, fill: Fill, stamp: str
    ) -> FileSquares:
        path = place.with_suffix(PART)
        try:
            with self._locked():
                self._make_room(stored_bytes(len(wanted), side))
                writer = FileWriter(part, len(wanted), side)
            kept, unreadable = fill(writer)
            found = writer.finish(kept, unreadable)
            if any(isinstance(why, Passing) for why in unreadable):
                log.warning("%s: some files could not be read this time: not kept for other runs", domain.name)
                path.unlink()
            elif domain.stamp(wanted) == stamp:
                os.replace(path, place)
            else:
                log.warning("%s: files changed while they were decoded: not kept for other runs", domain.name)
                path.unlink()
            fcntl.flock(part, fcntl.LOCK_SH)
            return found
        except BaseException:
            path.unlink(missing_ok=True)
            part.close()
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _make_room(self, need: int) -> None:
        """Remove entries that no run uses, oldest use first, until `need` more bytes fit."""
        if need > self._limit:
            raise NoRoom(f"{need / 1e9:.1f} GB are more than data.cache_gb, {self._limit / 1e9:g} GB")
        ages: list[tuple[int, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if path.suffix in (ENTRY, PART):
                    status = path.stat()
                    ages.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in ages)
        for _, size, path in sorted(ages):
            if total + need > self._limit and _remove_unused(path):
                total -= size
        if total + need > self._limit:
            raise NoRoom(f"other runs are using {total / 1e9:.1f} GB of data.cache_gb, {self._limit / 1e9:g} GB")
        disk = os.statvfs(self._folder)
        if need + RESERVE > disk.f_bavail * disk.f_frsize:
            raise NoRoom(f"the disk of {self._folder} has too little free space for {need / 1e9:.1f} GB")


def _remove_unused(path: Path) -> bool:
    """Remove an entry unless a process has it open."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True


def _key(stamp: str, preprocessing: Preprocessing) -> str:
    decoder = [PIL.__version__, *(features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib", "webp"))]
    geometry = (preprocessing.resize, preprocessing.stored_size)
    return hashlib.sha256(f"{FORMAT} {decoder} {geometry} {stamp}".encode("utf-8", "surrogateescape")).hexdigest()[:40]
