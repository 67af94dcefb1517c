"""Files that are whole or not there, whatever stops the process or the machine; folders that one process writes to."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeda.errors import InputError, one_line

if sys.platform != "win32":
    import fcntl

PART = ".part"
"""Ending of a file that is being written; one that is left over is never read, and replaced by the next write."""


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`: on success its content is put on the disk and takes the name, both or neither.

    On failure it is removed and what was at `path` stays. Raises the block's own OSError, such as a full disk.
    `shared`: other processes may write `path` at the same time, on any machine; the last one to finish stays.
    """
    own = f".{platform.node()}-{os.getpid()}" if shared else ""
    temporary = path.with_name(path.name + own + PART)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """A `whole_file` of text; OSError when the disk is full or the folder is not ours."""
    with whole_file(path, shared) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(folder: Path, option: str) -> None:
    """InputError, before anything long, when no file could be put into a folder that is there or yet to be made.

    `option` is what the user chooses another place with. Nothing is left behind.
    """
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or one_line(error)
        raise InputError(f"cannot write to {folder}: {reason}; choose another place with {option}") from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk; nothing where folders cannot be synced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, and wait until their names are on the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with suppress(PermissionError):  # one that may be written to and not read
            sync(folder.parent)


class HeldFolder:
    """A folder that this object alone writes to, until `release` or the end of the process.

    InputError when another one holds it: `doing` says what that one does there. Nothing is written for it, and file
    systems that cannot lock a folder do not.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self._descriptor: int | None = None
        if sys.platform == "win32":
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise InputError(f"another process is {doing} {folder}; wait for it, or choose another folder") from None
        except OSError:  # some network file systems
            self.release()

    def release(self) -> None:
        """Let others have it; may be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> HeldFolder:
        return self

    def __exit__(self, *of_the_block: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()
