"""The Ray that runs are made on: one of this machine, or a cluster that has what they need."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeda import __version__
from edgeda.errors import MachineError, one_line, require
from edgeda.runtime.cores import usable_cores

log = logging.getLogger(__name__)

Record = dict[str, Any]

OBJECT_STORE = 80 * 2**20
"""Bytes of a local Ray's object store, near the least it takes: images and weights go by the file system."""
ANSWER_S = 60.0
"""Seconds that a node is given to say which edgeda it has."""


@contextlib.contextmanager
def cluster(workers: int | None = None, address: str | None = None) -> Iterator[Any]:
    """Ray, connected to `address` or started here with `workers` CPUs (default: all), and shut down at the end.

    Raises MachineError when it cannot be used, or when a node has another edgeda.
    """
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what befalls workers on stdout, where results go
        ray = _connect(workers, address)
        try:
            if address is not None:
                _check_versions(ray)
            yield ray
        finally:
            ray.shutdown()


def _connect(workers: int | None, address: str | None) -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = require("ray", "ray", "running many at once")
    options: Record = {"log_to_driver": False, "logging_level": "critical", "address": address or "local"}
    if address is None:  # `local` is said: without an address Ray takes any cluster that runs on this machine
        cpus = workers or usable_cores()
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray on this machine"
        raise MachineError(f"{where} cannot be used: {one_line(error)}") from error
    return ray


def _check_versions(ray: Any) -> None:
    """Ask every node for its edgeda before work is sent there."""

    def asked() -> tuple[str, str]:  # travels by value: the node need not have this module
        import platform

        try:
            import edgeda
        except ImportError as error:
            return platform.node(), f"none ({error})"
        return platform.node(), edgeda.__version__

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(asked)
    answers = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    ]
    ready, late = ray.wait(answers, num_returns=len(answers), timeout=ANSWER_S)
    for reference in ready:
        try:
            node, version = ray.get(reference)
        except ray.exceptions.RayError as error:
            log.warning("a node of the cluster cannot run anything: %s", one_line(error))
            continue
        if version != __version__:
            raise MachineError(
                f"node {node} of the cluster has edgeda {version}, this machine {__version__}; install one version "
                "everywhere"
            )
    if late:
        log.warning("%d of %d nodes have not answered in %.0f s", len(late), len(answers), ANSWER_S)


def check_resources(nodes: Sequence[Mapping[str, Any]], name: str, cpus: float, gpus: float) -> None:
    """MachineError when no node of the cluster could ever run that. `nodes` as `ray.nodes()` lists them."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus for has in alive):
        most = {kind: int(max((has.get(kind, 0) for has in alive), default=0)) for kind in ("CPU", "GPU")}
        raise MachineError(
            f"{name} asks for {cpus:g} CPUs and {gpus:g} GPUs (train.threads, train.device); the largest of "
            f"{len(alive)} nodes has {most['CPU']} CPUs and {most['GPU']} GPUs"
        )
