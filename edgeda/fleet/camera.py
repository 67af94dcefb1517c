"""One camera's work in a worker: its images, its run, its export, and what is told of it meanwhile."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeda.adapt import adapt
from edgeda.artifacts import CHECKPOINT, RECIPE, SUMMARY, RunDirectory
from edgeda.cells import sweep, until_free
from edgeda.data import load_target
from edgeda.data.images import decode
from edgeda.data.opening import open_labelled
from edgeda.errors import InputError
from edgeda.export.images import parity_images
from edgeda.fleet.look import LOOKED, apart, look
from edgeda.fleet.sampling import sample
from edgeda.fleet.served import Shipped, drift_since, export_shipped, serve, try_serving
from edgeda.fleet.state import Storage
from edgeda.recipe import DataRecipe, Recipe
from edgeda.recipe_file import load_recipe
from edgeda.report.summary import cautioned
from edgeda.watching import Deaf

Record = dict[str, Any]

SOURCE = "looks/source of the fleet"
"""Where the look of the source is kept; no camera's folder has spaces."""


class Telling(Deaf):
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


def look_at(work: Record) -> Record:
    """A camera's images: sampled if they are a stream's, and what they look like noted in the state."""
    recipe = Recipe.model_validate(work["recipe"])
    _sampled(work, recipe, Path(recipe.data.target))
    _look(Storage(work["state"]), work["look"], recipe.data)
    return {"status": "looked"}


def run_camera(work: Record) -> Record:
    """Train or finish a camera's run, export what its verdict ships, and return what is known of it.

    Where another camera looks alike and has finished, its student is tried first.
    """
    began = time.monotonic()
    first = {"status": "running", "node": platform.node(), "pid": os.getpid(), "attempt": work["attempt"]}
    storage = Storage(work["state"])
    watcher = Telling(storage, work["key"], first, work["shared_stages"])
    folder, recipe = Path(work["folder"]), Recipe.model_validate(work["recipe"])
    _sampled(work, recipe, Path(recipe.data.target))
    for what in ("source", "target", "target_test"):
        path = getattr(recipe.data, what)
        if path and Path(path).is_absolute() and not Path(path).exists():
            raise InputError(
                f"no such folder or file on node {platform.node()}: {path} (the {what}); every node must see it under "
                "that path"
            )
    found: Record = {"status": "finished", "node": platform.node(), "attempt": work["attempt"]}
    group = work["group"]
    if group and (Path(group["folder"]) / SUMMARY).is_file() and not (folder / RECIPE).is_file():
        run = RunDirectory(Path(group["folder"]))
        tried, shipped = try_serving(recipe.data, run, group["most"])
        found["group"] = {"of": group["name"], "distance": group["distance"], "cost": tried["cost"]}
        if shipped is not None:
            found |= {"served_by": group["name"], **{key: tried[key] for key in ("verdict", "why", "caveat")}}
            found |= {
                "training_s": 0.0,
                **serve(recipe.data, shipped, Path(work["served"]) if work["export"] else None),
            }
            return _ended(found, storage, work, recipe.data, began)
    until_free(folder)
    sweep(folder)
    saved = folder / RECIPE
    resume = saved.is_file()
    summary = adapt(
        load_recipe(str(saved)) if resume else recipe, folder, watcher, resume=resume, shared=Path(work["shared"]),
        many_targets=True,
    )  # fmt: skip
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    shipped = Shipped.of(RunDirectory(folder))
    found |= {
        "model": export_shipped(shipped, parity_images(shipped.run, None, shipped.role)) if work["export"] else None,
        "verdict": summary["verdict"]["ship"], "why": summary["verdict"]["reason"], "caveat": cautioned(summary),
        "training_s": summary["wall_s"],
        "accuracy": {role: summary["accuracy"][role]["target"]["selected"] for role in ("student", "source_only")},
    }  # fmt: skip
    return _ended(found, storage, work, recipe.data, began)


def check_camera(work: Record) -> Record:
    """How far a finished camera's images have drifted since its model was exported; a stream is sampled anew."""
    recipe = Recipe.model_validate(work["recipe"])
    if not work["model"]:
        raise InputError("it has no exported model, and so no reference of what it looked like")
    with tempfile.TemporaryDirectory(prefix="edgeda-") as temporary:
        frames = Path(temporary) / "frames"
        sampled = _sampled(work, recipe, frames)
        data = recipe.data.model_copy(update={"target": str(frames)} if sampled else {})
        drift = drift_since(data, Shipped.of(RunDirectory(Path(work["run"]))), work["model"])
    return {"status": "checked", "drift": drift}


def _sampled(work: Record, recipe: Recipe, folder: Path) -> bool:
    """Whether the camera is a stream, of which there are frames in `folder` then."""
    if work["stream"]:
        sample(work["stream"]["address"], work["stream"]["minutes"], recipe.data.video, folder)
    return bool(work["stream"])


def _look(storage: Storage, key: str, data: DataRecipe) -> Record:
    """What a camera's images look like, or did when that was first asked."""
    found = storage.read(key)
    if found is None:
        found = look(load_target(data, LOOKED).squares[:])
        storage.write(key, found)
    return found


def _ended(found: Record, storage: Storage, work: Record, data: DataRecipe, began: float) -> Record:
    """With how far the camera is from the source, and what it took."""
    source = storage.read(SOURCE)
    if source is None:
        source = look(decode(open_labelled(data.source), data.preprocessing, "source", LOOKED).squares[:])
        storage.write(SOURCE, source)
    shift, statistic = apart(_look(storage, work["look"], data), source)
    seconds = round(time.monotonic() - began, 1)
    return {**found, "shift": {"distance": round(shift, 4), "statistic": statistic}, "seconds": seconds}
