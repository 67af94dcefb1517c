"""A run's folder while it is written: claimed, locked, cleared; nothing of the user's is replaced."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeda.artifacts import CHECKPOINT, METRICS, RECIPE, ROLES, RUNS, SUMMARY
from edgeda.errors import InputError, WrongKey
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.tracking import FOLDERS
from edgeda.whole_file import PART, check_writable

OURS = (RECIPE, SUMMARY, METRICS, "report.html", *(f"{role}.safetensors" for role in ROLES))
LOCK = ".lock"
OUR_FOLDERS = (CHECKPOINT, "plots", "exports", *FOLDERS.values())


def claim(out: Path | None, recipe: Recipe, resume: bool, overwrite: bool) -> Path:
    """The run's folder; refuses one in training, with what was not asked to be replaced, or that cannot be written."""
    folder = _chosen(out, recipe, resume, overwrite)
    if is_training(folder):
        raise in_training(folder)
    check_writable(folder, "--out")
    return folder


def _chosen(out: Path | None, recipe: Recipe, resume: bool, overwrite: bool) -> Path:
    if out is None:
        taken = [path.name for path in RUNS.iterdir()] if RUNS.is_dir() else []
        number = next(n for n in range(1, len(taken) + 2) if f"{recipe.name}-{n}" not in taken)
        return RUNS / f"{recipe.name}-{number}"
    if resume:
        return out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if out.is_dir() and not is_vacant(out):
        if not _is_run(out):
            raise InputError(f"--out {out} is not empty and not a run directory; choose another folder")
        if not overwrite:
            raise InputError(f"the run {out} exists already; add --resume to go on, --overwrite to start again")
    return out


def is_vacant(folder: Path) -> bool:
    """Whether a folder is empty but for what a run leaves that died before it wrote its recipe."""
    return {path.name for path in folder.iterdir()} <= {LOCK, RECIPE + PART}


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a recipe of ours, so that what lies beside it may be replaced."""
    try:
        load_recipe(str(folder / RECIPE))
    except InputError:
        return False
    return True


def refuse_other(differences: Iterable[tuple[str, Any, Any]], what: str, instead: str) -> None:
    """WrongKey for the first key, value there and value asked for in which `what` was made by another recipe."""
    for key, was, now in differences:
        raise WrongKey(key, f"{what} has {was}, now {now} is asked for; {instead}")


@contextmanager
def holding(lock: Path) -> Iterator[bool]:
    """Whether a lock file is ours until the end of the block; the system lets go of it when a process dies."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_training(folder: Path) -> bool:
    """Whether a process, such as an `edgeda adapt` by hand, holds a run directory. Changes nothing there."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or none that may be read: whoever writes there will hear of it
        return False
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run directory."""
    with holding(folder / LOCK) as free:
        if not free:
            raise in_training(folder)
        yield


def in_training(folder: Path) -> InputError:
    """What to say of a run directory that another process holds."""
    return InputError(f"another process is training in {folder}; choose another --out or wait for it")


def clear(folder: Path, overwrite: bool) -> None:
    """Remove an earlier run's own files, nothing else.

    The recipe, which makes the folder a run's, stays until it is replaced.
    InputError for a run that another process made since the folder was claimed, unless it may be replaced.
    """
    if not overwrite and not is_vacant(folder):
        raise InputError(f"another process has made the run {folder} meanwhile; choose another --out")
    for name in OURS:
        if name != RECIPE:
            (folder / name).unlink(missing_ok=True)
        (folder / (name + PART)).unlink(missing_ok=True)
    for name in OUR_FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
