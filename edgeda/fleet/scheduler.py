"""Many runs at once on Ray: CPUs and GPUs asked for, crashed runs tried again, Ctrl-C passed on."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeda import __version__
from edgeda.errors import EdgedaError, InputError, Interrupted, MachineError, from_os_error, one_line, require
from edgeda.recipe import Recipe

log = logging.getLogger(__name__)

Record = dict[str, Any]

RETRIES = 2
"""Times that a run whose process died is tried again; it goes on from its checkpoint."""
STOPPING_S = 120
"""Seconds that runs are given to save their state after Ctrl-C."""
QUEUED = 2
"""Runs handed to Ray for each that can be at work: the rest wait here, whatever the size of the fleet."""
OBJECT_STORE = 80 * 2**20
"""Bytes of a local Ray's object store, near the least it takes: images and weights go by the file system."""


@dataclass(frozen=True)
class Job:
    """A run to be made: JSON values for the worker, and what it needs of a node."""

    name: str
    work: Record
    cpus: int = 1
    gpus: int = 0
    shares: str | None = None
    """Of jobs that share this, one goes ahead; the others wait until it has ended or is `released`."""


class NullWatcher:
    """Training without a display."""

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """Nothing."""

    def step(self, pairs: int) -> None:
        """Nothing."""

    def epoch(self, record: Record) -> None:
        """Nothing."""


def requests(recipe: Recipe) -> tuple[Recipe, int, int]:
    """A recipe as it is run beside others, with the CPUs and GPUs it asks for.

    `train.threads` 0 means one here and `train.device` auto the CPU, so that a result does not depend on the node.
    """
    threads = recipe.train.threads or 1
    device = "cpu" if recipe.train.device == "auto" else recipe.train.device
    train = recipe.train.model_copy(update={"threads": threads, "device": device})
    return recipe.model_copy(update={"train": train}), threads, int(device == "cuda")


def check_resources(nodes: Sequence[Mapping[str, Any]], jobs: Sequence[Job]) -> None:
    """MachineError for a job that no node of the cluster could ever run. `nodes` as `ray.nodes()` lists them."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    for job in jobs:
        if not any(has.get("CPU", 0) >= job.cpus and has.get("GPU", 0) >= job.gpus for has in alive):
            most = {kind: int(max((has.get(kind, 0) for has in alive), default=0)) for kind in ("CPU", "GPU")}
            raise MachineError(
                f"{job.name} asks for {job.cpus} CPUs and {job.gpus} GPUs (train.threads, train.device); the largest "
                f"of {len(alive)} nodes has {most['CPU']} CPUs and {most['GPU']} GPUs"
            )


def run_jobs(
    jobs: Sequence[Job],
    function: Callable[[Record], Record],
    ended: Callable[[Job, Record], None],
    *,
    workers: int | None = None,
    address: str | None = None,
    retries: int = RETRIES,
    crashed: Callable[[Job, int], None] = lambda job, attempt: None,
    released: Callable[[Job], bool] = lambda job: False,
) -> None:
    """Run every job once, on a Ray of `workers` CPUs on this machine or on the cluster at `address`.

    `function` gets a job's work (with `cwd` and `driver`, where this is) in a process of its own and returns a record
    with `status`; `ended` gets that record. One that raises, or whose process has died more than `retries` times, has
    the status `failed` and a `reason`. `crashed` is told of every other death, `released` asked whether those that wait
    for a job may begin.

    Raises MachineError when the cluster cannot be used, and Interrupted on Ctrl-C, when runs have saved their state.
    """
    if not jobs:
        return
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what befalls workers on stdout, where results go
        ray = _connect(workers, address)
        try:
            check_resources(ray.nodes(), jobs)
            _Queue(ray, jobs, function, ended, retries, crashed, released).run()
        finally:
            ray.shutdown()


def _connect(workers: int | None, address: str | None) -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "ray", "running many at once")
    options: Record = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        cpus = workers or len(os.sched_getaffinity(0))
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray on this machine"
        raise MachineError(f"{where} cannot be used: {one_line(error)}") from error
    return ray


class _Queue:
    """What waits, what Ray has, and what becomes of it."""

    def __init__(
        self, ray: Any, jobs: Sequence[Job], function: Callable[[Record], Record], ended: Callable[[Job, Record], None],
        retries: int, crashed: Callable[[Job, int], None], released: Callable[[Job], bool],
    ) -> None:  # fmt: skip
        self.ray, self.function, self.ended = ray, function, ended
        self.retries, self.crashed, self.released = retries, crashed, released
        self.waiting = list(jobs)
        self.running: dict[Any, Job] = {}
        self.deaths: dict[str, int] = {}
        self.leaders: dict[str, Job] = {}
        self.free: set[str] = set()
        """Groups whose leader has done what they share."""
        self.room = QUEUED * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self) -> None:
        try:
            while self.waiting or self.running:
                self._submit()
                self._collect(0.5 if self.leaders else 5.0)
        except KeyboardInterrupt:
            self._stop()
            raise Interrupted("stopped; the same command goes on where this one stopped") from None

    def _submit(self) -> None:
        for group, leader in list(self.leaders.items()):
            if self.released(leader):
                self._release(group)
        later = []
        for at, job in enumerate(self.waiting):
            if len(self.running) >= self.room:
                later += self.waiting[at:]
                break
            if job.shares is not None and job.shares not in self.free:
                leader = self.leaders.setdefault(job.shares, job)
                if leader.name != job.name:
                    later.append(job)
                    continue
            remote = self.ray.remote(num_cpus=job.cpus, num_gpus=job.gpus, max_retries=0)(_on_node)
            work = {**job.work, "cwd": os.getcwd(), "driver": platform.node()}
            self.running[remote.remote(self.function, __version__, work)] = job
        self.waiting = later

    def _release(self, group: str) -> None:
        self.leaders.pop(group, None)
        self.free.add(group)

    def _collect(self, seconds: float) -> None:
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        for reference in ready:
            job = self.running.pop(reference)
            try:
                result = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                self.deaths[job.name] = self.deaths.get(job.name, 0) + 1
                if self.deaths[job.name] <= self.retries:
                    log.warning("%s: its process died; trying again", job.name)
                    self.crashed(job, self.deaths[job.name])
                    self.waiting.insert(0, job)
                    continue
                reason = f"its process died {self.deaths[job.name]} times; the last: {one_line(error)}"
                result = {"status": "failed", "reason": reason}
            if job.shares is not None and self.leaders.get(job.shares) == job:
                # after a failure another one goes ahead: what they share may not be there
                self.leaders.pop(job.shares)
                if result["status"] != "failed":
                    self._release(job.shares)
            self.ended(job, result)

    def _stop(self) -> None:
        """Runs save their state as on Ctrl-C of their own; what has finished meanwhile is noted."""
        log.warning("stopping: runs save their state")
        for reference in self.running:
            self.ray.cancel(reference, force=False)
        ready, _ = self.ray.wait(list(self.running), num_returns=max(1, len(self.running)), timeout=STOPPING_S)
        for reference in ready:
            try:
                result = self.ray.get(reference)
            except self.ray.exceptions.RayError:
                continue
            if result["status"] != "stopped":
                self.ended(self.running[reference], result)


def _on_node(function: Callable[[Record], Record], version: str, work: Record) -> Record:
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
        return {"status": "stopped"}
    except EdgedaError as error:
        reason = one_line(error)
    except OSError as error:
        reason = one_line(from_os_error(error, "working"))
    except Exception as error:  # noqa: BLE001 - a bug in one run must not stop the others
        reason = f"internal error: {type(error).__name__}: {one_line(error)}"
    where = "" if node == work["driver"] else f"on node {node}: "
    return {"status": "failed", "reason": where + reason}
