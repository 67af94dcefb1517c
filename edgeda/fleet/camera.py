"""One camera's work in a worker: its run, its export, and what is told of it meanwhile."""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from edgeda.adapt import adapt
from edgeda.artifacts import CHECKPOINT, RECIPE, RunDirectory
from edgeda.cells import sweep
from edgeda.errors import InputError
from edgeda.fleet.scheduler import NullWatcher
from edgeda.fleet.state import Storage
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe

Record = dict[str, Any]


class Telling(NullWatcher):
    """Writes the state of a camera when a stage begins and an epoch ends: also a sign of life."""

    def __init__(self, storage: Storage, name: str, first: Record, shared: list[str]) -> None:
        self._storage, self._name, self._record, self._shared = storage, name, first, shared
        self._tell()

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """A stage; after those that cameras share, the others may begin."""
        shared_done = name not in self._shared
        self._record |= {"stage": name, "epoch": done // max(steps_per_epoch, 1), "epochs": epochs}
        self._record["shared_done"] = self._record.get("shared_done", False) or shared_done
        self._tell()

    def epoch(self, record: Record) -> None:
        """An epoch."""
        self._record |= {"stage": record["stage"], "epoch": record["epoch"], "epochs": record["epochs"]}
        self._tell()

    def _tell(self) -> None:
        self._storage.write(self._name, {**self._record, "heard": round(time.time(), 1)})


def run_camera(work: Record) -> Record:
    """Train or finish a camera's run, export what its verdict ships, and return what is known of it."""
    began = time.monotonic()
    first = {"status": "running", "node": platform.node(), "pid": os.getpid(), "attempt": work["attempt"]}
    watcher = Telling(Storage(work["state"]), work["key"], first, work["shared_stages"])
    folder, recipe = Path(work["folder"]), Recipe.model_validate(work["recipe"])
    sweep(folder)
    saved = folder / RECIPE
    resume = saved.is_file()
    for what in ("source", "target", "target_test"):
        path = getattr(recipe.data, what)
        if path and Path(path).is_absolute() and not Path(path).exists():
            raise InputError(
                f"no such folder or file on node {platform.node()}: {path} (the {what}); every node must see it under "
                "that path"
            )
    summary = adapt(
        load_recipe(str(saved)) if resume else recipe, folder, watcher, resume=resume, shared=Path(work["shared"])
    )
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    model = _export(RunDirectory(folder), summary) if work["export"] else None
    return {
        "status": "finished", "node": platform.node(), "attempt": work["attempt"], "model": model,
        "seconds": round(time.monotonic() - began, 1), "verdict": summary["verdict"]["ship"],
        "why": summary["verdict"]["reason"], "training_s": summary["wall_s"],
        "accuracy": {role: summary["accuracy"][role]["target"]["selected"] for role in ("student", "source_only")},
    }  # fmt: skip


def _export(run: RunDirectory, summary: Record) -> str:
    from edgeda.export import export_run
    from edgeda.export.images import parity_images

    role = "student" if summary["verdict"]["ship"] == "adapted" else "source_only"
    checked = parity_images(run, None, role)
    result = export_run(
        run,
        checked.squares,
        images_from=checked.origin,
        role=role,
        labels=checked.labels,
        gmacs=checked.gmacs,
        threads=1,
    )
    return str(result["path"])
