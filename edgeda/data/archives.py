"""Unpack an archive that somebody else made: regular files below one folder, and nothing else."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from edgeda.errors import InputError, one_line

MOST_ENTRIES = 1_000_000
DEEPEST = 32
"""Folders within each other."""
MOST_RATIO, ALWAYS_BYTES = 100, 100 * 2**20
"""An archive unpacks to at most so many times its size, or to ALWAYS_BYTES if that is more: images hardly shrink."""


def is_archive(path: Path) -> bool:
    """Whether a file is a .zip, or a .tar however compressed, by its content."""
    try:
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except (*DAMAGE, OSError):  # a compressed file that is cut short
        return False


def unpack(archive: Path, folder: Path) -> None:
    """Write the regular files of a .zip or .tar below `folder`; hidden ones and __MACOSX are left out.

    Raises InputError, possibly with files already written, for a name that leads out of the folder, a
    link or a device, a name that comes twice, one that is too deep, an archive that is damaged or locked by a
    password, and one that unpacks to more than MOST_RATIO times its size.
    """
    reader = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    room = max(MOST_RATIO * archive.stat().st_size, ALWAYS_BYTES)
    with _damage(archive):
        for number, (name, size, source) in enumerate(reader(archive)):
            room -= size
            if room < 0 or number >= MOST_ENTRIES:
                raise InputError(
                    f"{archive} unpacks to more than {MOST_RATIO} times its size, or to more than {MOST_ENTRIES} "
                    "files, as no data set does; unpack it yourself and give the folder"
                )
            relative = _inside(name, archive)
            if any(part.startswith(".") or part == "__MACOSX" for part in relative.parts):
                continue
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise InputError(f"{archive} holds {name} twice; unpack it yourself and give the folder")
            with target.open("xb") as written:
                shutil.copyfileobj(source, written)
            if target.stat().st_size != size:
                raise InputError(f"{archive} is damaged: {name} ends early")


def _inside(name: str, archive: Path) -> PurePosixPath:
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise InputError(f"{archive} holds {name!r}, which leads out of the folder; nothing of it was kept")
    if len(relative.parts) > DEEPEST:
        raise InputError(f"{archive} holds {name[:80]!r}..., more than {DEEPEST} folders deep; nothing of it was kept")
    return relative


def _tar_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isdir():
                _inside(member.name, archive)
                continue
            source = opened.extractfile(member) if member.isreg() else None
            if source is None:
                _refuse(member.name, archive)
            else:
                yield member.name, member.size, source


def _zip_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if member.is_dir():
                _inside(member.filename, archive)
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                _refuse(member.filename, archive)
            with opened.open(member) as source:
                yield member.filename, member.file_size, source


def _refuse(name: str, archive: Path) -> None:
    raise InputError(f"{archive} holds {name!r}, a link or device; unpack it yourself and give the folder")


# RuntimeError: a zip that is encrypted, or compressed in a way that zipfile does not know
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError,
)  # fmt: skip


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    """What the archive libraries raise, as one line; trouble with the disk passes."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{archive} cannot be unpacked: {one_line(error)}") from error
    except OSError as error:
        if error.errno is None:  # a damaged gzip
            raise InputError(f"{archive} cannot be unpacked: {one_line(error)}") from error
        raise
