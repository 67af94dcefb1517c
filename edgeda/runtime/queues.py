"""The two bounded queues of a pipeline: frames waiting for a worker, and results put back in order."""

from __future__ import annotations

from collections import deque
from threading import Condition, Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Feed(Generic[Item]):
    """Frames of several sources, taken in turn.

    A file's reader waits while `capacity` of its frames are waiting. A live source keeps one: a newer frame
    takes the place of one that nobody has taken yet, which is counted in `dropped`.
    """

    def __init__(self, sources: int, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: list[deque[Item]] = [deque() for _ in range(sources)]
        lock = Lock()
        self._filled, self._emptied = Condition(lock), Condition(lock)
        self._reading = sources
        self._turn = 0
        self._batches = 0
        self._stopped = False
        self.dropped = [0] * sources

    def put(self, source: int, item: Item, live: bool) -> bool:
        """Add a frame; False once the pipeline has stopped."""
        waiting = self._waiting[source]
        with self._filled:
            if live and waiting:
                waiting.clear()
                self.dropped[source] += 1
            while len(waiting) >= self._capacity and not self._stopped:
                self._emptied.wait()
            if self._stopped:
                return False
            waiting.append(item)
            self._filled.notify()
        return True

    def end(self) -> None:
        """A source has no more frames."""
        with self._filled:
            self._reading -= 1
            self._filled.notify_all()

    def stop(self) -> None:
        """Let everybody go."""
        with self._filled:
            self._stopped = True
            self._filled.notify_all()
            self._emptied.notify_all()

    def take(self, most: int) -> tuple[int, list[Item]] | None:
        """The number of this batch, from 0 up, and 1 to `most` frames that are there; None at the end."""
        with self._filled:
            while not any(self._waiting):
                if self._stopped or self._reading == 0:
                    return None
                self._filled.wait()
            if self._stopped:
                return None
            taken: list[Item] = []
            while len(taken) < most and any(self._waiting):
                waiting = self._waiting[self._turn]
                self._turn = (self._turn + 1) % len(self._waiting)
                if waiting:
                    taken.append(waiting.popleft())
            self._batches += 1
            self._emptied.notify_all()
            return self._batches - 1, taken


class InOrder(Generic[Item]):
    """Results by batch number, given out in order of the numbers; a worker too far ahead waits."""

    def __init__(self, workers: int, most_ahead: int) -> None:
        self._ready: dict[int, Item] = {}
        self._next = 0
        self._most_ahead = most_ahead
        self._workers = workers
        self._stopped = False
        self._failure: BaseException | None = None
        self._changed = Condition()

    def put(self, number: int, item: Item) -> None:
        """The result of a batch; waits while it is too far ahead of the one that is due."""
        with self._changed:
            while number >= self._next + self._most_ahead and not self._stopped:
                self._changed.wait()
            self._ready[number] = item
            if number == self._next:
                self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """A worker cannot go on: `get` raises its error."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def worker_done(self) -> None:
        """A worker has ended."""
        with self._changed:
            self._workers -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Let workers that wait go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def get(self, timeout_s: float) -> Item | None:
        """The next result; None when none came in this time; Finished when none will come."""
        with self._changed:
            if self._next not in self._ready and self._failure is None and self._workers:
                self._changed.wait(timeout_s)
            if self._failure is not None:
                raise self._failure
            if self._next in self._ready:
                item = self._ready.pop(self._next)
                self._next += 1
                self._changed.notify_all()
                return item
            if self._workers == 0:
                raise Finished
            return None


class Finished(Exception):
    """All workers have ended and everything was given out."""
