"""One of the processes that `launch` starts: a job on stdin, what happens as lines of JSON on a pipe."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from edgeda.distributed.world import world

Record = dict[str, Any]
PARENT_GONE = 1


class Teller(logging.Handler):
    """Tells the launching process what happens: progress, notices, the end. Only the first worker tells progress."""

    def __init__(self, pipe: TextIO) -> None:
        super().__init__(logging.INFO)
        self._pipe, self._leads, self._turn = pipe, world().leads, threading.Lock()

    def tell(self, **said: Any) -> None:
        """One line."""
        with self._turn:
            self._pipe.write(json.dumps(said) + "\n")
            self._pipe.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """A notice, of the first worker alone."""
        if self._leads:
            self.tell(log=[record.levelno, record.getMessage()])

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """A stage begins."""
        if self._leads:
            self.tell(stage=[name, epochs, steps_per_epoch, done])

    def step(self, pairs: int) -> None:
        """A batch is done."""
        if self._leads:
            self.tell(step=[pairs])

    def epoch(self, record: Record) -> None:
        """An epoch is done."""
        if self._leads:
            self.tell(epoch=[record])


def main() -> None:
    """Work until the job is done; the exit code says nothing that the pipe did not say."""
    pipe = open(int(sys.argv[2]), "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    teller = Teller(pipe)
    ours = logging.getLogger("edgeda")
    ours.handlers[:], ours.propagate = [teller], False
    ours.setLevel(logging.INFO)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        done = _work(job, teller)
    except BaseException as error:  # noqa: BLE001 - the launching process raises it
        failed = {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        with contextlib.suppress(BrokenPipeError):  # it is gone itself
            teller.tell(failed=failed)
        os._exit(1)  # at once, without waiting for messages to processes that may be gone
    if world().leads:
        teller.tell(done=done)


def _work(job: Record, teller: Teller) -> Record:
    from edgeda.adapt import adapt
    from edgeda.recipe import Recipe

    out, shared = (Path(job[name]) if job[name] is not None else None for name in ("out", "shared"))
    recipe = Recipe.model_validate(job["recipe"])
    return adapt(recipe, out, teller, resume=job["resume"], overwrite=job["overwrite"], shared=shared)


def _end_with_parent() -> None:
    """The launching process holds the other end of stdin for as long as it lives."""
    while os.read(0, 1):
        pass
    os._exit(PARENT_GONE)
