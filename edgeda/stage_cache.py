"""Stages that several runs have in common (a source-only reference, a warm-up), trained once and kept in a folder."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from edgeda import __version__
from edgeda.checkpoint import FILE, load_checkpoint, save_checkpoint
from edgeda.errors import InputError, from_os_error
from edgeda.methods.base import Stage
from edgeda.recipe import Recipe
from edgeda.whole_file import PART, HeldFolder, make_folder

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when code changes what a stage makes of the same recipe and images."""
ALWAYS = ("data", "train", "select")
"""Sections of the recipe that every stage depends on."""
EPOCHS_BYTES = 10 * 10**9
"""Weights of a stage's epochs that are kept for other targets at most; a longer stage is trained by each run."""
OF_THE_TARGET = ("target", "target_test", "video")
"""Keys of section `data` that a stage which sees the source alone does not depend on."""


def for_any_target(stages: list[Stage]) -> list[str]:
    """Names of the stages that train the same whatever the target: warm-ups and the source-only reference.

    The target still decides which epoch of one that is scored is selected.
    """
    return [
        stage.name for index, stage in enumerate(stages) if stage.epochs and _trains_on_source(_chain(stages, index))
    ]


def _roles(stage: Stage) -> set[str]:
    return {*stage.trains, *(origin for origin in stage.starts_from.values() if isinstance(origin, str))}


def _chain(stages: list[Stage], index: int) -> list[Stage]:
    """Stage `index` after the earlier ones that trained a network it begins with."""
    roles = _roles(stages[index])
    return [*(other for other in stages[:index] if roles & set(other.trains)), stages[index]]


def _trains_on_source(chain: list[Stage]) -> bool:
    """Whether the last stage of a chain trains alike for every target; an earlier one that is scored selects by it."""
    if any(stage.adapts or stage.reads is None for stage in chain):
        return False
    return not any(stage.scores for stage in chain[:-1])


class StageCache:
    """Finished stages by what decides their outcome: recipe, images, first weights, and the stages before them.

    With `any_target` a scored stage that trains on the source alone is kept epoch by epoch, for runs with other targets
    to score and select from.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, images: str, source_images: str, origins: Mapping[str, str],
        any_target: bool = False,
    ) -> None:  # fmt: skip
        self._folder, self._recipe, self._origins = folder, recipe, origins
        self._images, self._source_images = images, source_images
        self._any_target = any_target

    def by_epoch(self, stages: list[Stage], index: int, epoch_bytes: int) -> bool:
        """Whether stage `index` is kept epoch by epoch, at `epoch_bytes` each, rather than as it ended."""
        stage = stages[index]
        fits = stage.epochs * epoch_bytes <= EPOCHS_BYTES
        return self._any_target and bool(stage.scores) and fits and _trains_on_source(_chain(stages, index))

    def save_epoch(self, stages: list[Stage], index: int, epoch: int, outcome: dict[str, Any]) -> None:
        """Keep what an epoch of stage `index` ended with, its last line of metrics included."""
        folder = self._place(stages, index, any_target=True)
        if folder is not None:
            self._save(folder / f"epoch-{epoch}", outcome)

    def load_epochs(self, stages: list[Stage], index: int) -> Iterator[dict[str, Any]] | None:
        """What each epoch of stage `index` ended with, read when its turn comes; None unless all are there."""
        folder = self._place(stages, index, any_target=True)
        if folder is None:
            return None
        places = [folder / f"epoch-{epoch}" for epoch in range(1, stages[index].epochs + 1)]
        if not all((place / FILE).is_file() for place in places):
            return None
        return (found for place in places if (found := load_checkpoint(place)) is not None)

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
        if folder is not None:
            self._save(folder, outcome)

    def _save(self, folder: Path, outcome: dict[str, Any]) -> None:
        # another process may save the same stage, on another node with the same number
        own, held = folder.with_name(f"{folder.name}.{platform.node()}-{os.getpid()}{PART}"), False
        try:
            for left in folder.parent.glob(f"{glob.escape(folder.name)}.*{PART}"):  # by a process that was killed
                with suppress(InputError), HeldFolder(left, "saving"):
                    shutil.rmtree(left)
            make_folder(own)
            with HeldFolder(own, "saving"):
                held = True
                save_checkpoint(own, outcome)
                folder.mkdir(parents=True, exist_ok=True)
                os.replace(own / FILE, folder / FILE)
        except (InputError, OSError) as error:  # the run itself goes on
            reason = error if isinstance(error, InputError) else from_os_error(error, "saving it")
            log.warning("a stage is not left to other runs: %s", reason)
        finally:
            if held:
                shutil.rmtree(own, ignore_errors=True)

    def _place(self, stages: list[Stage], index: int, any_target: bool = False) -> Path | None:
        stage = stages[index]
        chain = _chain(stages, index)
        if any(other.reads is None for other in chain):
            return None
        roles = _roles(stage)
        dump = self._recipe.outcome()
        sections = sorted({*ALWAYS, *(name for other in chain for name in other.reads or ())})
        source_alone = _trains_on_source(chain) and (any_target or not stage.scores)
        if source_alone:
            dump["data"] = {name: value for name, value in dump["data"].items() if name not in OF_THE_TARGET}
        key = {
            "format": FORMAT, "edgeda": __version__, "torch": torch.__version__,
            "images": self._source_images if source_alone else self._images,
            "weights": {role: self._origins.get(role) for role in sorted(roles)},
            "recipe": {name: dump[name] for name in sections},
            "stages": [[other.name, other.epochs] for other in chain],
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{stage.name.replace(' ', '-')}-{digest[:24]}"
