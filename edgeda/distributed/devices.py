"""From `train.devices` to processes that know each other: how many may there be, and joining them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.distributed.rendezvous import rendezvous

from edgeda.distributed.group import Group
from edgeda.distributed.world import meet_in, speaks_first, world
from edgeda.errors import InputError, MachineError, WorkerLost, one_line
from edgeda.profiling.machine import usable_threads
from edgeda.runtime.cores import usable_cores

PATIENCE = timedelta(days=1)
"""How long a process waits for another that is alive: one may decode a whole domain while the others wait."""
GONE = ("onnection closed", "onnection reset", "roken pipe", "onnection refused", "onnection was likely")
"""What gloo and the store say when the process at the other end is not there any more."""


_met: list[bool] = []
"""Whether this process has joined a group before."""


class Replicas(DDPStrategy):
    """Fabric's DDP (ranks, process group, devices) whose gradients are averaged by `descend`, for all learners alike.

    DistributedDataParallel's own hooks want every parameter of a network to get a gradient in every step, of a shape
    that never changes. ADDA leaves the head out, TCP removes channels, and discriminators are learners, too.
    """

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """The module as it is, with the first process's numbers."""
        Group(self.global_rank, self.world_size).follow([*module.parameters(), *module.buffers()])
        return module


def devices_asked(devices: int | None) -> int:
    """Processes of a run: `train.devices`, or as many as torchrun has started; InputError when both say different."""
    started = world().size
    if started > 1 and devices is not None and devices != started:
        raise InputError(
            f"torchrun has started {started} processes, but train.devices is {devices}; give --devices {started}"
        )
    return devices or started


def check_devices(devices: int, batch_size: int, device: str) -> None:
    """MachineError when there are not so many, InputError when the batch cannot be divided by them."""
    local = world().local_size if world().size > 1 else devices
    there = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
    if local > there:
        kind = ("GPU" if device == "cuda" else "CPU core, and each takes a process") if there == 1 else (
            "GPUs" if device == "cuda" else "CPU cores, one for each process")  # fmt: skip
        raise MachineError(f"{local} devices are asked for, this machine has {there} {kind}; give --devices {there}")
    if batch_size % devices or batch_size < devices:
        below = batch_size - batch_size % devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise InputError(
            f"a batch of {batch_size} images cannot be divided among {devices} devices; give --batch-size {near}"
        )


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in GONE)


def lost(error: RuntimeError, hint: str = "") -> WorkerLost:
    """The same error in plain words."""
    return WorkerLost(f"another process of this run died or cannot be reached ({one_line(error)[:80]}){hint}")


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group of the processes that were started with this one; alone, a group of one.

    Raises WorkerLost when another process is gone.
    """
    here = world()
    if here.size == 1:
        yield Group()
        return
    if _met:  # a second meeting over the same store would wait for ever
        raise InputError("processes that torchrun has started train one run; start torchrun again for the next")
    _met.append(True)
    where = torch.device("cpu")
    if device == "cuda":
        where = torch.device("cuda", here.local_rank)
        torch.cuda.set_device(where)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        meet_in(store)
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE
        )
        yield Group(rank, size, where)
    except WorkerLost:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_lost(error):
            raise lost(error) from error
        speaks_first()  # before the others find that this process is gone
        raise
    finally:
        if dist.is_initialized() and device == "cpu":  # NCCL would wait for what can no longer be
            dist.destroy_process_group()


def make_fabric(device: str, precision: str) -> Fabric:
    """Fabric for this process, launched: one device, or one of several processes."""
    here = world()
    kwargs: dict[str, Any] = {"devices": 1}
    if here.size > 1:
        kwargs = {
            "devices": here.local_size, "num_nodes": here.size // here.local_size,
            "strategy": Replicas(timeout=PATIENCE),
        }  # fmt: skip
    threads = torch.get_num_threads()
    fabric = Fabric(accelerator=device, precision=precision, **kwargs)  # type: ignore[arg-type]
    fabric.launch()
    torch.set_num_threads(threads)  # Fabric has an opinion of its own about several processes
    return fabric


def same_everywhere(group: Group, digest: str) -> None:
    """InputError when this process sees other images than the first."""
    if group.decide(lambda: digest) != digest:
        raise InputError(
            f"process {group.rank} of this run sees other images than process 0: every machine must have the same "
            "files under the same paths"
        )


def threads_here() -> int:
    """Threads of this process: its share of the cores it may use, or OMP_NUM_THREADS where that is fewer."""
    return min(usable_threads(), max(1, usable_cores() // world().local_size))
