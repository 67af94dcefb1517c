"""Folders of runs that several processes make together: leftovers, and whether another recipe made one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgeda.artifacts import RECIPE
from edgeda.methods import full_names, stages
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.run_folder import is_training, is_vacant

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


def until_free(folder: Path, seconds: float = ORPHAN_S) -> None:
    """Wait until no process holds a run directory: one whose node was lost may outlive it for a moment."""
    until = time.monotonic() + seconds
    while is_training(folder) and time.monotonic() < until:
        time.sleep(0.1)
