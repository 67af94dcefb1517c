"""What a fleet still has to do, as jobs for Ray."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from edgeda.adapt import check
from edgeda.benchmark_recipe import folder_name
from edgeda.cells import differences
from edgeda.fleet.camera import check_camera, look_at, run_camera
from edgeda.fleet.look import alike
from edgeda.fleet.recipe import FleetRecipe
from edgeda.fleet.scheduler import Job, requests
from edgeda.fleet.state import Storage, camera_key
from edgeda.methods import stages
from edgeda.recipe import Recipe
from edgeda.run_folder import refuse_other
from edgeda.stage_cache import for_any_target

Record = dict[str, Any]

SHARED = ".shared"
WATCHING = 0.1
"""CPUs that sampling a stream takes."""
LOOK = "the look of "


class Plan:
    """A fleet in a folder with its state, as both stand when the plan is made."""

    def __init__(self, recipe: FleetRecipe, out: Path, storage: Storage) -> None:
        self.recipe, self.out, self.storage = recipe, out, storage
        self.records: dict[str, Record] = dict(zip(recipe.cameras, self._read(), strict=True))
        finished = {name for name, record in self.records.items() if record.get("status") == "finished"}
        if recipe.group is None:  # what was served by another camera's student gets its own
            finished = {name for name in finished if "served_by" not in self.records[name]}
        self.finished = [name for name in recipe.cameras if name in finished]
        self.todo = [name for name in recipe.cameras if name not in finished]

    def _read(self) -> list[Record]:
        return [record or {} for record in self.storage.read_many(map(camera_key, self.recipe.cameras))]

    def run_recipe(self, name: str) -> tuple[Recipe, int, int]:
        """A camera's recipe, and the CPUs and GPUs it asks for."""
        frames = self.out / "frames" / folder_name(name)
        return requests(self.recipe.run_recipe(self.recipe.cameras[name], frames))

    @cached_property
    def shared_stages(self) -> list[str]:
        """Stages that train alike for every camera. Raises InputError for a recipe that cannot be run."""
        recipe, _, _ = self.run_recipe(next(iter(self.recipe.cameras)))
        on_cpu = recipe.model_copy(update={"train": recipe.train.model_copy(update={"device": "cpu"})})
        return for_any_target(stages(check(on_cpu)))  # GPUs are looked for on the nodes, not here

    def check(self) -> None:
        """InputError for a recipe that cannot be run, and for runs that another recipe made."""
        assert self.shared_stages is not None
        for name in self.recipe.cameras:
            found = differences(self.out / camera_key(name), self.run_recipe(name)[0])
            refuse_other(found, f"the camera '{name}' in {self.out}", "choose another --out")

    def looks(self) -> list[Job]:
        """Streams to be sampled; with `group` all cameras to be looked at, unless that was done before."""
        names = [name for name in self.todo if self.recipe.group or self.recipe.cameras[name].is_stream]
        known = self.storage.read_many(f"looks/{folder_name(name)}" for name in names)
        return [
            Job(LOOK + name, self._work(name), look_at, WATCHING if self.recipe.cameras[name].is_stream else 1)
            for name, seen in zip(names, known, strict=True)
            if seen is None
        ]

    def cameras(self) -> list[Job]:
        """Cameras to be adapted: those that look like another one after it, streams after they have been sampled."""
        groups = self._groups()
        jobs = []
        for name in self.todo:
            _, cpus, gpus = self.run_recipe(name)
            work = self._work(name)
            after = LOOK + name
            if name in groups and self.recipe.group:
                after, distance = groups[name]
                folder = str(self.out / camera_key(after))
                work["group"] = {"name": after, "folder": folder, "distance": distance, "most": self.recipe.group.cost}
            shares = "source" if self.shared_stages else None
            jobs.append(Job(name, work, run_camera, cpus, gpus, shares, after))
        return jobs

    def _groups(self) -> dict[str, tuple[str, float]]:
        """By camera: the one whose student is tried for it, and their distance."""
        if self.recipe.group is None:
            return {}
        names = list(self.recipe.cameras)
        looks = zip(names, self.storage.read_many(f"looks/{folder_name(name)}" for name in names), strict=True)
        return alike(((name, seen) for name, seen in looks if seen), self.recipe.group.distance)

    def checks(self) -> list[Job]:
        """Finished cameras, to be held against what they looked like."""
        jobs = []
        for name in self.finished:
            record = self.records[name]
            run = str(self.out / camera_key(record.get("served_by", name)))
            job = Job(name, {**self._work(name), "model": record["model"], "run": run}, check_camera)
            jobs.append(job)
        return jobs

    def _work(self, name: str) -> Record:
        camera, folder = self.recipe.cameras[name], folder_name(name)
        stream = {"address": camera.target, "minutes": camera.sample_minutes} if camera.is_stream else None
        return {
            "key": camera_key(name), "look": f"looks/{folder}", "folder": str(self.out / camera_key(name)),
            "recipe": self.run_recipe(name)[0].model_dump(mode="json"), "shared": str(self.out / SHARED),
            "state": self.storage.place, "shared_stages": self.shared_stages, "export": self.recipe.export,
            "attempt": 1, "stream": stream, "served": str(self.out / "served" / folder), "group": None,
        }  # fmt: skip
