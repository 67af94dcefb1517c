"""`edgeda fleet`: one source and recipe, many cameras, each a run of its own; what they share is computed once."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeda.distributed.world import check_alone
from edgeda.errors import InputError, Interrupted, from_os_error, one_line
from edgeda.fleet.recipe import FleetRecipe
from edgeda.fleet.report import result_of, verdict_words, write_report
from edgeda.fleet.state import FLEET, Storage, camera_key, default_place
from edgeda.whole_file import PART, check_writable

if TYPE_CHECKING:
    from edgeda.fleet.plan import Plan

__all__ = ["fleet", "fleet_status"]

log = logging.getLogger(__name__)

Record = dict[str, Any]

LOCK = ".fleet.lock"


def fleet(
    recipe: FleetRecipe,
    out: Path,
    *,
    state: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    check_drift: bool = False,
) -> Record:
    """Adapt every camera that has not finished, in `out`/cameras/NAME, and return what is known of all of them.

    Cameras are Ray tasks on `workers` CPUs of this machine or the cluster at `address`, which must see `out` under the
    same path. The first one trains what does not depend on the target; the others wait for that. `state` is
    where progress and results are kept, `out`/state by default. A camera that fails is noted, the others go on. With
    `check_drift` cameras that had finished before are held against what they looked like then.

    Raises InputError for a wrong request and for runs that another recipe made, MachineError for a cluster that lacks
    what is asked for (before anything is trained), and Interrupted on Ctrl-C.
    """
    check_alone("a fleet")
    from edgeda.fleet.plan import Plan
    from edgeda.run_folder import holding

    out = out.absolute()
    check_writable(out, "--out")
    storage = Storage(state or default_place(out))
    plan = Plan(recipe, out, storage)
    plan.check()
    try:
        (out / "cameras").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"making the folder {out}") from error
    with holding(out / LOCK) as mine:
        if not mine:
            raise InputError(f"another `edgeda fleet` is at work in {out}; wait for it, or choose another --out")
        plan = Plan(recipe, out, storage)  # as it is now that nobody else changes it
        return _run(plan, workers, address, check_drift)


def _run(plan: Plan, workers: int | None, address: str | None, check_drift: bool) -> Record:
    from edgeda.fleet.cluster import cluster

    recipe, out, storage = plan.recipe, plan.out, plan.storage
    cameras = {name: camera.shown for name, camera in recipe.cameras.items()}
    storage.write(FLEET, {"name": recipe.name, "out": str(out), "source": recipe.source, "cameras": cameras})
    meanwhile = f"; how far they are: edgeda fleet --status --state {shlex.quote(storage.place)}" if plan.todo else ""
    log.info("%d cameras, %d of them to be adapted%s", len(cameras), len(plan.todo), meanwhile)
    for name in plan.todo:
        if plan.records[name]:  # without a record it is waiting
            storage.write(camera_key(name), {"status": "waiting"})
    try:
        if plan.todo or (check_drift and plan.finished):
            with cluster(workers, address) as ray:
                _jobs(plan, ray, check_drift)
    except Interrupted:
        for name in plan.todo:
            record = storage.read(camera_key(name)) or {}
            if record.get("status") == "running":
                storage.write(camera_key(name), {**record, "status": "stopped", "shared_done": False})
        result = write_report(out, fleet_status(storage.place))
        raise Interrupted(
            f"stopped; {result['counts'].get('finished', 0)} of {len(cameras)} cameras are finished, see "
            f"{out}/fleet.html; the same command goes on where this one stopped"
        ) from None
    _tidy(out, plan.shared_stages)
    return write_report(out, fleet_status(storage.place))


def _jobs(plan: Plan, ray: Any, check_drift: bool) -> None:
    from edgeda.fleet.scheduler import Job, run_jobs

    storage = plan.storage

    def ended(job: Job, result: Record) -> None:
        if job.name not in plan.records:  # a look; a camera that cannot be looked at says why itself
            return
        if result["status"] == "checked":
            storage.write(job.work["key"], {**plan.records[job.name], "drift": result["drift"]})
        elif job.name in plan.finished:
            log.warning("%s: its drift is not known: %s", job.name, result.get("reason"))
        else:
            storage.write(job.work["key"], {**result, "heard": round(time.time(), 1)})
            log.info("%s: %s", job.name, result.get("reason") or f"{verdict_words(result)}, {result['seconds']:.0f} s")

    def crashed(job: Job, deaths: int) -> None:
        job.work["attempt"] = deaths + 1
        if job.name in plan.todo:
            storage.write(job.work["key"], {"status": "waiting", "attempt": deaths + 1})

    def released(job: Job) -> bool:
        return bool((storage.read(job.work["key"]) or {}).get("shared_done"))

    def run(jobs: Sequence[Job]) -> None:
        run_jobs(ray, jobs, ended, retries=plan.recipe.retries, crashed=crashed, released=released)

    looks = plan.looks()
    if plan.recipe.group:  # who looks like whom must be known before anything is adapted
        run(looks)
        looks = []
    run([*looks, *plan.cameras(), *(plan.checks() if check_drift else ())])


def _tidy(out: Path, stages: Sequence[str]) -> None:
    """Keep only stages that a camera added later could take over; the others were one camera's own."""
    shared = out / ".shared"
    kept = tuple(f"{name.replace(' ', '-')}-" for name in stages)
    for folder in list(shared.iterdir()) if shared.is_dir() else []:
        if not folder.name.startswith(kept or ("?",)) or folder.name.endswith(PART):
            shutil.rmtree(folder, ignore_errors=True)


def fleet_status(state: str) -> Record:
    """What is known of a fleet from its state alone; InputError where there is none."""
    storage = Storage(state)
    about = storage.read(FLEET)
    if about is None:
        raise InputError(f"no fleet's state in {state}; start it with: edgeda fleet FLEET.yaml")
    try:
        cameras = dict(about["cameras"])
        records = storage.read_many(map(camera_key, cameras))
        known = {name: record or {"status": "waiting"} for name, record in zip(cameras, records, strict=True)}
        return result_of(about, known)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the state in {state} is damaged: {type(error).__name__}: {one_line(error)}") from error
