"""What a run tells while it trains."""

from __future__ import annotations

from typing import Any, Protocol

Record = dict[str, Any]


class Watcher(Protocol):
    """What a progress display is told."""

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """A stage begins, `done` steps of it behind us."""

    def step(self, pairs: int) -> None:
        """A batch of so many source and target pairs is done."""

    def epoch(self, record: Record) -> None:
        """An epoch's line of metrics."""


class Deaf:
    """A watcher that takes no notice."""

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """Nothing."""

    def step(self, pairs: int) -> None:
        """Nothing."""

    def epoch(self, record: Record) -> None:
        """Nothing."""
