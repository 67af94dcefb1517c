"""Folders of runs that several processes make together: locks, leftovers, and whether another recipe made one."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeda.artifacts import RECIPE
from edgeda.methods import full_names, stages
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.run_folder import LOCK, is_vacant

NOT_COMPARED = ("name", "train.threads")
"""Keys that do not say what a run's result is, up to rounding."""
ORPHAN_S = 60.0
"""Seconds in which a worker whose node or driver has died ends, too."""


def differences(folder: Path, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """Key, value in the cell's folder, value asked for; keys left to the machine (auto) do not count."""
    saved = folder / RECIPE
    if not saved.is_file():
        return []
    unused: str | tuple[str, ...] = () if any("teacher" in stage.trains for stage in stages(recipe)) else "teacher."
    return [
        (key, was, now)
        for key, was, now in full_names(load_recipe(str(saved))).differences(full_names(recipe))
        if key not in NOT_COMPARED and not key.startswith(unused)
        and not (now == "auto" and key in ("train.device", "train.precision"))
    ]  # fmt: skip


def sweep(folder: Path) -> None:
    """Empty a run directory whose process died before it wrote its recipe."""
    if folder.is_dir() and is_vacant(folder):
        for path in list(folder.iterdir()):
            path.unlink()


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
    """Whether a process, such as an `edgeda adapt` by hand, holds a run directory."""
    if not (folder / LOCK).is_file():
        return False
    with holding(folder / LOCK) as free:
        return not free


def until_free(folder: Path, seconds: float = ORPHAN_S) -> None:
    """Wait until no process holds a run directory: one whose node was lost may outlive it for a moment."""
    until = time.monotonic() + seconds
    while is_training(folder) and time.monotonic() < until:
        time.sleep(0.1)
