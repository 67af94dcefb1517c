"""`edgeda fleet`: one source and recipe, many cameras, each a run of its own; what they share is computed once."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from edgeda.cells import differences, holding
from edgeda.errors import InputError, Interrupted, from_os_error
from edgeda.fleet.recipe import FleetRecipe
from edgeda.fleet.report import result_of, write_report
from edgeda.fleet.scheduler import Job, requests, run_jobs
from edgeda.fleet.state import FLEET, Storage, default_place

__all__ = ["fleet", "fleet_status"]

log = logging.getLogger(__name__)

Record = dict[str, Any]

SHARED = ".shared"
LOCK = ".fleet.lock"


def fleet(
    recipe: FleetRecipe,
    out: Path,
    *,
    state: str | None = None,
    workers: int | None = None,
    address: str | None = None,
) -> Record:
    """Adapt every camera that has not finished, in `out`/cameras/NAME, and return what is known of all of them.

    Cameras are Ray tasks on `workers` CPUs of this machine or the cluster at `address`, which must see `out` under the
    same path. The first one trains the stages that do not depend on the target; the others wait for those. `state` is
    where progress and results are kept, `out`/state by default. A camera that fails is noted, the others go on.

    Raises InputError for a wrong request and for runs that another recipe made (before anything is trained), and
    Interrupted on Ctrl-C.
    """
    from edgeda.adapt import check
    from edgeda.fleet.camera import run_camera
    from edgeda.methods import stages
    from edgeda.stage_cache import for_any_target

    out = out.absolute()
    storage = Storage(state or default_place(out))
    jobs: list[Job] = []
    for name, camera in recipe.cameras.items():
        own, cpus, gpus = requests(recipe.run_recipe(camera))
        on_cpu = own.model_copy(update={"train": own.train.model_copy(update={"device": "cpu"})})
        shared = for_any_target(stages(check(on_cpu)))  # GPUs are looked for on the nodes, not here
        key = _key(name)
        work = {
            "key": key, "folder": str(out / key), "recipe": own.model_dump(mode="json"), "shared": str(out / SHARED),
            "state": storage.place, "shared_stages": shared, "export": recipe.export, "attempt": 1,
        }  # fmt: skip
        for changed, was, now in differences(out / key, own):
            raise InputError(
                f"the camera '{name}' in {out} was adapted by another recipe: its {changed} is {was}, now {now} was "
                "asked for; choose another --out"
            )
        jobs.append(Job(name, work, cpus, gpus, shares="source" if shared else None))
    try:
        (out / "cameras").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"making the folder {out}") from error
    with holding(out / LOCK) as mine:
        if not mine:
            raise InputError(f"another `edgeda fleet` is at work in {out}; wait for it, or choose another --out")
        return _run(recipe, out, storage, jobs, run_camera, workers, address)


def _run(
    recipe: FleetRecipe, out: Path, storage: Storage, jobs: list[Job], function: Any, workers: int | None,
    address: str | None,
) -> Record:  # fmt: skip
    cameras = {name: camera.target for name, camera in recipe.cameras.items()}
    storage.write(FLEET, {"name": recipe.name, "out": str(out), "source": recipe.source, "cameras": cameras})
    todo = [job for job in jobs if (storage.read(job.work["key"]) or {}).get("status") != "finished"]
    log.info("%d cameras, %d of them to be adapted", len(jobs), len(todo))
    for job in todo:
        storage.write(job.work["key"], {"status": "waiting"})

    def ended(job: Job, result: Record) -> None:
        storage.write(job.work["key"], {**result, "heard": round(time.time(), 1)})
        log.info("%s: %s", job.name, result.get("reason") or f"ship {result['verdict']}, {result['seconds']:.0f} s")

    def crashed(job: Job, deaths: int) -> None:
        job.work["attempt"] = deaths + 1
        storage.write(job.work["key"], {"status": "waiting", "attempt": deaths + 1})

    def released(job: Job) -> bool:
        return bool((storage.read(job.work["key"]) or {}).get("shared_done"))

    try:
        run_jobs(
            todo, function, ended, workers=workers, address=address, retries=recipe.retries, crashed=crashed,
            released=released,
        )  # fmt: skip
    except Interrupted:
        for job in todo:
            record = storage.read(job.work["key"]) or {}
            if record.get("status") == "running":
                storage.write(job.work["key"], {**record, "status": "stopped", "shared_done": False})
        result = write_report(out, fleet_status(storage.place))
        raise Interrupted(
            f"stopped; {result['counts'].get('finished', 0)} of {len(jobs)} cameras are finished, see "
            f"{out}/fleet.html; the same command goes on where this one stopped"
        ) from None
    _tidy(out / SHARED, {name for job in jobs for name in job.work["shared_stages"]})
    return write_report(out, fleet_status(storage.place))


def _tidy(shared: Path, stages: set[str]) -> None:
    """Keep only stages that a camera added later could take over; the others were one camera's own."""
    kept = tuple(f"{name.replace(' ', '-')}-" for name in stages)
    for folder in list(shared.iterdir()) if shared.is_dir() else []:
        if not folder.name.startswith(kept or ("?",)):
            shutil.rmtree(folder, ignore_errors=True)


def fleet_status(state: str) -> Record:
    """What is known of a fleet from its state alone; InputError where there is none."""
    storage = Storage(state)
    about = storage.read(FLEET)
    if about is None:
        raise InputError(f"no fleet's state in {state}; start it with: edgeda fleet FLEET.yaml")
    return result_of(about, {name: storage.read(_key(name)) or {"status": "waiting"} for name in about["cameras"]})


def _key(name: str) -> str:
    from edgeda.benchmark_recipe import folder_name

    return f"cameras/{folder_name(name)}"
