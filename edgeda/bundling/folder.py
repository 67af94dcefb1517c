"""A kit's folder: written whole or not at all, and never in place of something that is not a kit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeda.errors import InputError, from_os_error
from edgeda.runtime.runs import KIT_LISTING
from edgeda.whole_file import check_writable

_MADE_ON_THE_DEVICE = ("*.engine", "__pycache__")
"""What tools leave in a kit: built from the model that goes, so it goes with it."""


def check_place(out: Path, overwrite: bool) -> None:
    """InputError unless a kit may be written to `out`."""
    if out.name in ("", ".."):
        raise InputError(f"--out {out}: name the kit's folder itself, such as {out / 'gate-camera'}")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"--out {out} is a {'link' if out.is_symlink() else 'file'}; give a folder")
    check_writable(out.parent, "--out")
    if not out.exists() or not any(out.iterdir()):
        return
    files = _listed(out)
    if files is None:
        raise InputError(f"--out {out} is not empty and not a kit of edgeda; choose another folder")
    if not overwrite:
        raise InputError(f"the kit {out} exists already; add --overwrite to replace it")
    for path in sorted(out.rglob("*")):
        known = path.is_dir() or path.relative_to(out).as_posix() in files
        made = any(part.match(pattern) for part in (path, *path.parents) for pattern in _MADE_ON_THE_DEVICE)
        if not known and not made:
            raise InputError(f"{path} is not part of the kit and would be lost; move it away, or choose another --out")


def write_folder(out: Path, files: Mapping[str, bytes], about: Mapping[str, Any]) -> None:
    """Put `files` (by relative path) and their listing into `out`, in place of an earlier kit."""
    staging, old = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("part", "old"))
    try:
        for name, content in {**files, KIT_LISTING: _listing(files, about)}.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            if out.exists():
                out.rename(old)
            staging.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise from_os_error(error, "writing the kit") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if out.exists():  # else it is the only kit there is
            shutil.rmtree(old, ignore_errors=True)


def _listing(files: Mapping[str, bytes], about: Mapping[str, Any]) -> bytes:
    return (json.dumps({**about, "files": sorted([*files, KIT_LISTING])}, indent=2) + "\n").encode()


def _listed(folder: Path) -> set[str] | None:
    """The files of a kit, from its own listing; None for a folder that is no kit."""
    try:
        listing = json.loads((folder / KIT_LISTING).read_text(encoding="utf-8"))
        if not isinstance(listing["edgeda"], str) or not isinstance(listing["kit"], str):
            return None
        return {str(name) for name in listing["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
