"""The process that the user started with `--devices N`: it starts N workers, listens to them and ends them together."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import TCPStore

from edgeda import errors
from edgeda.errors import EdgedaError, WorkerLost, one_line
from edgeda.recipe import Recipe
from edgeda.stopping import stopping
from edgeda.watching import Record, Watcher

HOST = "127.0.0.1"
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edgeda.distributed.worker import main; main()"
SETTLE_S, PARTING_S = 1.0, 30.0
"""How long the others may say why, once one has failed; and how long they may take to leave, once all is done."""

log = logging.getLogger(__name__)


def run_workers(job: Record, devices: int, watcher: Watcher) -> Record:
    """What the first of so many workers returns for `job`, the JSON arguments of `edgeda.adapt.adapt`.

    The error of a worker is raised here, and all workers end with it. WorkerLost when one died without a word.
    """
    workers = _Workers(job, devices, watcher)
    try:
        with stopping(workers.ask_to_stop):
            return workers.listen()
    finally:
        workers.end()


class _Workers:
    def __init__(self, job: Record, devices: int, watcher: Watcher) -> None:
        self._watcher, self._devices = watcher, devices
        self._heard: queue.Queue[tuple[int, Record]] = queue.Queue()
        self._failures: dict[int, Record] = {}
        self._run = job["out"]
        self._summary: Record | None = None
        self._stopped = False
        self._processes: list[subprocess.Popen[bytes]] = []
        # as torchrun's agent does: the store outlives every worker, and its port is the system's choice
        self._store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=10))
        try:
            for rank in range(devices):
                self._start(rank, json.dumps(job).encode())
        except BaseException:
            self.end()
            raise

    def _start(self, rank: int, job: bytes) -> None:
        told = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self._devices, "LOCAL_WORLD_SIZE": self._devices,
            "MASTER_ADDR": HOST, "MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_RUN_ID": "edgeda",
        }  # fmt: skip
        hears, tells = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(sys.path), str(tells)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(tells,), start_new_session=True,
            env={**os.environ, **{name: str(value) for name, value in told.items()}},
        )  # fmt: skip
        os.close(tells)
        self._processes.append(process)
        threading.Thread(target=self._hear, args=(rank, hears), daemon=True).start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already: `listen` will see
            process.stdin.write(job + b"\n")  # and stays open: its end is how a worker learns that we are gone
            process.stdin.flush()

    def _hear(self, rank: int, descriptor: int) -> None:
        try:
            with open(descriptor, encoding="utf-8") as lines:
                for line in lines:
                    if line.endswith("\n"):  # else it died while it spoke
                        self._heard.put((rank, json.loads(line)))
        except (OSError, ValueError) as error:  # ValueError: no UTF-8, no JSON
            message = f"process {rank} of {self._devices} is no longer understood ({one_line(error)})"
            lost = {"kind": WorkerLost.__name__, "message": message, "traceback": ""}
            self._heard.put((rank, {"failed": lost}))

    def listen(self) -> Record:
        """Pass on what workers say until the first is done."""
        while self._summary is None:
            self._hear_one()
            codes = [process.poll() for process in self._processes]
            if self._failures or any(codes) or None not in codes:
                until = time.monotonic() + SETTLE_S
                while time.monotonic() < until and self._summary is None:
                    self._hear_one()
                if self._summary is None:
                    self._fail()
        until = time.monotonic() + PARTING_S
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        return self._summary

    def _hear_one(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._understand(*self._heard.get(timeout=0.1))

    def _understand(self, rank: int, said: Record) -> None:
        if "done" in said:
            self._summary = said["done"]
        elif "failed" in said:
            self._failures[rank] = said["failed"]
        elif "log" in said:
            level, message = said["log"]
            log.log(level, "%s", message)
        else:
            for event in ("stage", "step", "epoch"):
                if event in said:
                    getattr(self._watcher, event)(*said[event])

    def _fail(self) -> None:
        """Raise the error that ended the run: a worker's own before that of those who only lost the others."""
        own = [failure for failure in self._failures.values() if failure["kind"] != WorkerLost.__name__]
        known = [failure for failure in own if _kind(failure) is not RuntimeError]
        if own and (known or not self._stopped):  # a library that is interrupted while it is imported says anything
            raise _as_error((known or own)[0])
        if self._stopped:
            raise KeyboardInterrupt
        died = [(rank, process.returncode) for rank, process in enumerate(self._processes)
                if process.poll() is not None and rank not in self._failures]  # fmt: skip
        how = [f"process {rank} of {self._devices} {_how(code)}" for rank, code in died]
        what = how[0] if how else next(iter(self._failures.values()))["message"]
        raise WorkerLost(f"{what}; the others were ended; go on with: edgeda adapt --out {self._run} --resume")

    def end(self) -> None:
        """No worker is left after this."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def ask_to_stop(self, number: int) -> None:
        """Hand a signal on to the first worker, which stops all of them after the step."""
        self._stopped = True
        self._processes[0].send_signal(number)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code} and without a word"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed ({name}" + ("; too little memory is the usual reason)" if name == "SIGKILL" else ")")


def _kind(failure: Record) -> type[BaseException]:
    """The class that a worker's error had, where it is one that users meet; RuntimeError for a bug."""
    kind = getattr(errors, failure["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EdgedaError):
        return next(base for base in kind.__mro__ if "__init__" not in vars(base))  # made of its text alone
    return {"KeyboardInterrupt": KeyboardInterrupt, "MemoryError": MemoryError}.get(failure["kind"], RuntimeError)


def _as_error(failure: Record) -> BaseException:
    """A worker's error, with its traceback as what caused it."""
    kind, message = _kind(failure), failure["message"]
    error = kind(f"{failure['kind']}: {message}" if kind is RuntimeError else message)
    error.__cause__ = RuntimeError(failure["traceback"])
    return error


def as_job(recipe: Recipe, out: Path, resume: bool, overwrite: bool, shared: Path | None) -> Record:
    """The arguments of `adapt` as JSON values."""
    return {
        "recipe": recipe.model_dump(mode="json"), "out": str(out), "resume": resume, "overwrite": overwrite,
        "shared": None if shared is None else str(shared),
    }  # fmt: skip
