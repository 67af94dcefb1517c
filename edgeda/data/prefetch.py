"""Batches made in the background while the step before them runs, and how long training waited for them."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from edgeda.data.batches import Batch, PairedBatches


class Prefetched:
    """The same batches as `batches`, up to `depth` of them made ahead by one thread; 0: made when they are asked for.

    A batch is a function of seed, stage and step alone, so nothing of this is part of a run's state.
    """

    def __init__(self, batches: PairedBatches, depth: int) -> None:
        self._batches, self._depth = batches, depth
        self._coming: dict[tuple[int, int], Future[Batch]] = {}
        self._pool = ThreadPoolExecutor(1, "batches")
        self.waited_s = 0.0
        """Seconds that `get` has taken, in all."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._batches.steps_per_epoch

    def get(self, stage: int, step: int, steps: int | None = None) -> Batch:
        """Batch `step` of a stage of `steps`; those after it are begun."""
        started = time.perf_counter()
        last = step + self._depth if steps is None else min(step + self._depth, steps - 1)
        wanted = [(stage, number) for number in range(step, last + 1)]
        if self._depth:
            for key in self._coming.keys() - set(wanted):
                self._coming.pop(key).cancel()
            for key in wanted:
                if key not in self._coming:
                    self._coming[key] = self._pool.submit(self._batches.get, *key)
            batch = self._coming.pop((stage, step)).result()
        else:
            batch = self._batches.get(stage, step)
        self.waited_s += time.perf_counter() - started
        return batch

    def names(self, stage: int, step: int) -> tuple[list[str], list[str]]:
        """Where the source and the target images of a batch came from."""
        return self._batches.names(stage, step)

    def close(self) -> None:
        """Stop making batches."""
        self._pool.shutdown(cancel_futures=True)
        self._coming.clear()
