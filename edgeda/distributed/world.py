"""Which process of how many this is, as torchrun (or `--devices`) tells it, and who of them speaks. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from edgeda.errors import InputError

TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that make a process one of several."""


class Counter(Protocol):
    """What processes count together in: a store of torch.distributed."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number and return it."""


_store: list[Counter] = []
_said: list[bool] = []
"""The answer that this process had when it asked whether it speaks."""


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's number, how many there are, and the same among those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0


def world() -> World:
    """The world this process was started in; of one where nobody said anything else."""
    told = os.environ
    if any(not told.get(name) for name in TOLD) or int(told["WORLD_SIZE"]) < 2:
        return World()
    size = int(told["WORLD_SIZE"])
    rank = int(told["RANK"])
    return World(rank, size, int(told.get("LOCAL_RANK", rank)), int(told.get("LOCAL_WORLD_SIZE", size)))


def meet_in(store: Counter | None) -> None:
    """The store that the processes of this run have in common; None once it is gone."""
    _store[:] = [store] if store is not None else []


def speaks_first() -> bool:
    """Whether this process is to say what went wrong: the first of all that asks, so that one line is said.

    A process that knows the reason asks before the others can notice that something is wrong.
    """
    if world().size == 1:
        return True
    if not _said:
        try:
            _said.append(_store[0].add("edgeda/said", 1) == 1)
        except (IndexError, RuntimeError):  # not met yet, and all fail alike; or the store died with the first process
            return world().leads
    return _said[0]


def check_alone(what: str) -> None:
    """InputError under torchrun, for what is not one run: its processes would each do another part and never meet."""
    if world().size > 1:
        raise InputError(
            f"{what} cannot be started by torchrun; start it alone, with --set train.devices={world().size}"
        )
