"""Stages that several runs have in common (a source-only reference, a warm-up), trained once and kept in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeda import __version__
from edgeda.checkpoint import FILE, load_checkpoint, save_checkpoint
from edgeda.errors import InputError
from edgeda.methods.base import Stage
from edgeda.recipe import Recipe

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when code changes what a stage makes of the same recipe and images."""
ALWAYS = ("data", "train", "select")
"""Sections of the recipe that every stage depends on."""


class StageCache:
    """Finished stages by what decides their outcome: recipe, images, first weights, and the stages before them."""

    def __init__(self, folder: Path, recipe: Recipe, images: str, origins: Mapping[str, str]) -> None:
        self._folder, self._recipe, self._images, self._origins = folder, recipe, images, origins

    def load(self, stages: list[Stage], index: int) -> dict[str, Any] | None:
        """The saved outcome of stage `index`, or None when there is none or it cannot be shared."""
        folder = self._place(stages, index)
        try:
            return load_checkpoint(folder) if folder else None
        except InputError as error:
            log.warning("a stage shared with other runs is trained again: %s", error)
            return None

    def save(self, stages: list[Stage], index: int, outcome: dict[str, Any]) -> None:
        """Keep the outcome of stage `index` if it can be shared."""
        folder = self._place(stages, index)
        if folder is None:
            return
        own = folder.with_name(f"{folder.name}.{os.getpid()}.part")  # another process may save the same stage
        try:
            save_checkpoint(own, outcome)
            folder.mkdir(exist_ok=True)
            os.replace(own / FILE, folder / FILE)
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def _place(self, stages: list[Stage], index: int) -> Path | None:
        stage = stages[index]
        if stage.reads is None:
            return None
        # earlier stages count where they trained a network that this one begins with
        roles = {*stage.trains, *(origin for origin in stage.starts_from.values() if isinstance(origin, str))}
        before = [other for other in stages[:index] if roles & set(other.trains)]
        if any(other.reads is None for other in before):
            return None
        dump = self._recipe.model_dump(mode="json", exclude={"train": {"track"}})
        sections = sorted({*ALWAYS, *stage.reads, *(name for other in before for name in other.reads or ())})
        key = {
            "format": FORMAT, "edgeda": __version__, "torch": torch.__version__, "images": self._images,
            "weights": {role: self._origins.get(role) for role in sorted(roles)},
            "recipe": {name: dump[name] for name in sections},
            "stages": [[other.name, other.epochs] for other in (*before, stage)],
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{stage.name.replace(' ', '-')}-{digest[:24]}"
