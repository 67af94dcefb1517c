"""Many runs at once on Ray: CPUs and GPUs asked for, crashed runs tried again, Ctrl-C passed on."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeda import __version__
from edgeda.errors import EdgedaError, InputError, Interrupted, from_os_error, one_line
from edgeda.fleet.cluster import check_resources
from edgeda.recipe import Recipe

log = logging.getLogger(__name__)

Record = dict[str, Any]
Function = Callable[[Record], Record]

RETRIES = 2
"""Times that a run whose process died is tried again; it goes on from its checkpoint."""
STOPPING_S = 120
"""Seconds that runs are given to save their state after Ctrl-C."""
QUEUED = 2
"""Work handed to Ray for each CPU: the rest waits here, whatever the size of the fleet."""
STOPPED = "stopped"
"""The status of a run that a signal ended, its state saved."""
POLL_S = 0.5
"""Seconds between two looks at whether a run has done what others wait for."""


@dataclass(frozen=True)
class Job:
    """A run to be made: JSON values for the worker, and what it needs of a node."""

    name: str
    work: Record
    function: Function
    """Gets the work (with `cwd` and `driver`, where this is) in a process of its own; returns a record with `status`.
    Where several processes have died of it, or it raised, the status is `failed` and there is a `reason`."""
    cpus: float = 1
    gpus: int = 0
    shares: str | None = None
    """Of jobs that share this, one goes ahead; the others wait until it has ended or is `released`."""
    after: str | None = None
    """The name of another job that must have ended, however it did."""


def requests(recipe: Recipe) -> tuple[Recipe, int, int]:
    """A recipe as it is run beside others, with the CPUs and GPUs it asks for.

    `train.threads` 0 means one here and `train.device` auto the CPU, so that a result does not depend on the node.
    Each of `train.devices` takes as many.
    """
    threads = recipe.train.threads or 1
    device = "cpu" if recipe.train.device == "auto" else recipe.train.device
    train = recipe.train.model_copy(update={"threads": threads, "device": device})
    devices = recipe.train.devices or 1
    return recipe.model_copy(update={"train": train}), devices * threads, devices * int(device == "cuda")


def run_jobs(
    ray: Any,
    jobs: Sequence[Job],
    ended: Callable[[Job, Record], None],
    *,
    retries: int = RETRIES,
    crashed: Callable[[Job, int], None] = lambda job, attempt: None,
    released: Callable[[Job], bool] = lambda job: False,
) -> None:
    """Run every job once on a `cluster`; `ended` gets each one's record.

    One whose process has died more than `retries` times has the status `failed`. `crashed` is told of every other
    death, `released` asked whether those that wait for a job may begin.

    Raises MachineError for what no node has, before anything runs, and Interrupted on Ctrl-C, when runs have saved
    their state.
    """
    needs = {(job.cpus, job.gpus): job.name for job in jobs}
    nodes = ray.nodes()
    for (cpus, gpus), name in needs.items():
        check_resources(nodes, name, cpus, gpus)
    _Queue(ray, jobs, ended, retries, crashed, released).run()


class _Queue:
    """What waits, what Ray has, and what becomes of it."""

    def __init__(
        self, ray: Any, jobs: Sequence[Job], ended: Callable[[Job, Record], None], retries: int,
        crashed: Callable[[Job, int], None], released: Callable[[Job], bool],
    ) -> None:  # fmt: skip
        self.ray, self.ended = ray, ended
        self.retries, self.crashed, self.released = retries, crashed, released
        self.remote = ray.remote(max_retries=0)(_on_node)
        names = {job.name for job in jobs}
        self.waiting = deque(job for job in jobs if job.after not in names)
        self.held: dict[str, list[Job]] = {}
        """By the name of what they come after, or of what they share: jobs that may not begin yet."""
        for job in jobs:
            if job.after in names:
                self.held.setdefault(f"after {job.after}", []).append(job)
        self.running: dict[Any, Job] = {}
        self.deaths: dict[str, int] = {}
        self.leaders: dict[str, Job] = {}
        self.free: set[str] = set()
        """Groups whose leader has done what they share."""
        self.room = QUEUED * max(1.0, float(ray.cluster_resources().get("CPU", 1)))

    def run(self) -> None:
        """Until every job has ended."""
        try:
            while self.waiting or self.running or any(self.held.values()):
                self._submit()
                self._collect(POLL_S if self.leaders else 5.0)
        except KeyboardInterrupt:
            self._stop()
            raise Interrupted("stopped; the same command goes on where this one stopped") from None

    def _submit(self) -> None:
        for group, leader in list(self.leaders.items()):
            if self.released(leader):
                self._release(group)
        while self.waiting and self.room > 0:
            job = self.waiting.popleft()
            if job.shares is not None and job.shares not in self.free:
                leader = self.leaders.setdefault(job.shares, job)
                if leader.name != job.name:
                    self.held.setdefault(f"shares {job.shares}", []).append(job)
                    continue
            work = {**job.work, "cwd": os.getcwd(), "driver": platform.node()}
            remote = self.remote.options(num_cpus=job.cpus, num_gpus=job.gpus)
            self.running[remote.remote(job.function, __version__, work)] = job
            self.room -= job.cpus

    def _release(self, group: str) -> None:
        """Whoever waits for what a leader shares may begin."""
        self.leaders.pop(group, None)
        self.free.add(group)
        self.waiting.extendleft(reversed(self.held.pop(f"shares {group}", [])))

    def _collect(self, seconds: float) -> None:
        if not self.running:
            assert self.waiting, "jobs wait for one another"
            return
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        for reference in ready:
            job = self.running.pop(reference)
            self.room += job.cpus
            try:
                result = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                self._lost(job, "died", f"; the last: {one_line(error)}")
                continue
            if result["status"] == STOPPED:  # by a signal that did not come from here
                self._lost(job, "was stopped")
            else:
                self._passed(job, result)

    def _lost(self, job: Job, how: str, why: str = "") -> None:
        """Its process is gone: it is tried again, or has failed."""
        deaths = self.deaths[job.name] = self.deaths.get(job.name, 0) + 1
        if deaths <= self.retries:
            log.warning("%s: its process %s; trying again", job.name, how)
            self.crashed(job, deaths)
            self.waiting.appendleft(job)
        else:
            self._passed(job, {"status": "failed", "reason": f"its process {how}, {deaths} times in all{why}"})

    def _passed(self, job: Job, result: Record) -> None:
        if job.shares is not None and self.leaders.get(job.shares) == job:
            if result["status"] == "failed":  # another one goes ahead: what they share may not be there
                self.leaders.pop(job.shares)
                self.waiting.extendleft(reversed(self.held.pop(f"shares {job.shares}", [])))
            else:
                self._release(job.shares)
        self.ended(job, result)
        self.waiting.extendleft(reversed(self.held.pop(f"after {job.name}", [])))

    def _stop(self) -> None:
        """Runs save their state as on Ctrl-C of their own; what has finished meanwhile is noted."""
        log.warning("stopping: runs save their state")
        for reference in self.running:
            self.ray.cancel(reference, force=False)
        until = time.monotonic() + STOPPING_S
        waiting = list(self.running)
        while waiting and time.monotonic() < until:
            ready, waiting = self.ray.wait(waiting, num_returns=1, timeout=max(0.0, until - time.monotonic()))
            for reference in ready:
                try:
                    result = self.ray.get(reference)
                except self.ray.exceptions.RayError:
                    continue
                if result["status"] != STOPPED:
                    self.ended(self.running[reference], result)


def _on_node(function: Function, version: str, work: Record) -> Record:
    """In a worker: any failure is a record, so that the others go on."""
    node = platform.node()
    if version != __version__:
        return {
            "status": "failed",
            "reason": f"node {node} has edgeda {__version__}, the driver {version}; install one version everywhere",
        }
    try:
        if not Path(work["cwd"]).is_dir():
            raise InputError(f"there is no folder {work['cwd']}; all nodes need the driver's working directory")
        return function(work)
    except (Interrupted, KeyboardInterrupt):
        return {"status": STOPPED}
    except EdgedaError as error:
        reason = one_line(error)
    except OSError as error:
        reason = one_line(from_os_error(error, "working"))
    except Exception as error:  # noqa: BLE001 - a bug in one run must not stop the others
        reason = f"internal error: {type(error).__name__}: {one_line(error)}"
    where = "" if node == work["driver"] or f"on node {node}" in reason else f"on node {node}: "
    return {"status": "failed", "reason": where + reason}
