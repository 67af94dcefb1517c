"""A process that has everything imported and forks a child for each command: faults by the hundred, in little time.

The child runs the command line as a user's process would, with one fault in it. Faults strike after a time, or at the
n-th thing that is done to a file below a folder: opened for writing, renamed, removed, made or synced, as Python's
audit events tell; or at the n-th call of a function, which raises from then on. A child waits for its threads as the
interpreter does at its end.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeda.run_folder import LOCK

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "test_resnet"
"""timm's smallest: a checkpoint of all its networks and optimizers is a few megabytes."""
TINY = [
    word
    for setting in (
        "data.input_size=32", "data.resize=squash", "data.crop_pct=1.0", f"teacher.backbone={NETWORK}",
        f"student.backbone={NETWORK}", "teacher.pretrained=none", "student.pretrained=none", "train.warmup_epochs=1",
        "train.threads=1", "train.checkpoint_minutes=0",
    )
    for word in ("--set", setting)
] + ["--precision", "fp32", "--batch-size", "10", "--epochs", "2"]  # fmt: skip
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
ADDS = ("open", "os.rename", "os.mkdir", "fsync")
"""What needs room on the disk."""
ERRORS: dict[str, Callable[[], BaseException]] = {
    "OSError": lambda: OSError(errno.EIO, os.strerror(errno.EIO)), "MemoryError": MemoryError,
    "SystemExit": lambda: SystemExit(7), "RuntimeError": lambda: RuntimeError("broken"),
}  # fmt: skip
_EVENTS, _STEPS = 0, 8


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal's number; what it wrote and how far it came."""

    code: int
    out: str
    err: str
    events: int
    """Things done to files below the folder that is watched."""
    steps: int
    """Training steps."""
    seconds: float

    @property
    def line(self) -> str:
        """The last line of what was said on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


@dataclass
class Driver:
    """Runs commands of `edgeda`, each in a forked child with a fault."""

    work: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    _process: subprocess.Popen[str] | None = None

    def run(
        self, *arguments: object, below: Path | None = None, at: int | None = None, strike: str = "kill",
        after: float | None = None, clock: bool = False, breaks: tuple[str, int, str] | None = None,
        timeout: float = 120.0, cwd: Path | None = None,
    ) -> Ended:  # fmt: skip
        """Run `edgeda ARGUMENTS` in `cwd`, by default the folder of the driver.

        The fault strikes at the `at`-th change below a folder, or `after` seconds: `kill`, `term`, `int`, or an error's
        name such as `ENOSPC`, which then stays (to what adds to the disk). `clock` makes the time of day jump.
        `breaks`: a function, `module:name`, and the number of the call from which on it raises one of `ERRORS`.
        """
        if self._process is None:
            command = [sys.executable, "-m", "tests.faults.driver"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=self.environment
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "arguments": [str(argument) for argument in arguments], "work": str(self.work),
            "cwd": str(cwd or self.work),
            "below": str(below or "/nowhere"), "at": at, "strike": strike, "after": after,
            "clock": clock, "breaks": breaks, "timeout": timeout,
        }  # fmt: skip
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        out, err = ((self.work / name).read_text(errors="replace") for name in ("out.txt", "err.txt"))
        return Ended(out=out, err=err, **answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


def adapt_arguments(source: Path, target: Path, out: Path) -> list[object]:
    """A small run of the default method: 4 stages, 24 steps at 40 source images, a checkpoint after each."""
    return ["adapt", "--source", source, "--target", target, *TINY, "--out", out]


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on how often a run was stopped: weights, metrics and summary without times."""
    summary = json.loads((run / "summary.json").read_text())
    for name in ("wall_s", "pairs_per_s", "wait_share", "peak_memory_mb", "machine"):
        summary.pop(name)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if k not in ("seconds", "pairs_per_s", "wait_share")} for line in lines]
    weights = {path.name: path.read_bytes() for path in sorted(run.glob("*.safetensors"))}
    return {"summary": summary, "metrics": timeless, "weights": weights}


def left_over(folder: Path) -> list[str]:
    """Names of temporary files and folders below a folder."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*")
        if ".part" in path.name or (path.name.startswith(".") and path.name != LOCK)
    )  # fmt: skip


def _serve() -> None:
    for name in ("adapt", "cli", "evaluate", "export.images", "export.tensorrt", "predict", "report.summary"):
        importlib.import_module(f"edgeda.{name}")
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    shared = mmap.mmap(-1, 16)
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(job, shared)
    status = _wait(pid, started + job["after"]) if job["after"] is not None else None
    if status is None and job["after"] is not None:
        os.kill(pid, _signal(job["strike"]))
    if status is None:
        status = _wait(pid, time.monotonic() + job["timeout"])
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise SystemExit(f"no end after {job['timeout']} s: {job}")
    return {
        "code": os.waitstatus_to_exitcode(status), "events": _read(shared, _EVENTS), "steps": _read(shared, _STEPS),
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def _wait(pid: int, until: float) -> int | None:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > until:
            return None
        time.sleep(0.004)


def _signal(strike: str) -> int:
    return {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[strike]


def _read(shared: mmap.mmap, place: int) -> int:
    return int.from_bytes(shared[place : place + 8], "little")


def _count(shared: mmap.mmap, place: int) -> int:
    number = _read(shared, place) + 1
    shared[place : place + 8] = number.to_bytes(8, "little")
    return number


def _child(job: dict[str, Any], shared: mmap.mmap) -> None:
    code = 99
    try:
        for number, name in ((1, "out.txt"), (2, "err.txt")):
            file = os.open(Path(job["work"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        os.chdir(job["cwd"])
        sys.argv = ["edgeda", *job["arguments"]]
        if job["clock"]:
            _jumping_clock()
        if job["breaks"]:
            _break(*job["breaks"])
        _watch(job, lambda: _count(shared, _EVENTS))
        _count_steps(lambda: _count(shared, _STEPS))
        from edgeda.__main__ import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:  # noqa: BLE001 - it must not come to the parent's code
        import traceback

        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(job: dict[str, Any], count: Callable[[], int]) -> None:
    """Count what is done below the folder, and let the fault strike."""
    below, strike = job["below"], job["strike"]
    stays = getattr(errno, strike, None)

    def event(name: str, path: str) -> None:
        if not path.startswith(below):
            return
        number = count()
        if job["at"] is None or (name not in ADDS if stays else number != job["at"]):
            return
        if stays:
            if number >= job["at"]:
                raise OSError(stays, os.strerror(stays), path)
        else:
            os.kill(os.getpid(), _signal(strike))

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in CHANGES or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if name == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        event(name, os.path.abspath(os.fsdecode(arguments[0])))

    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        event("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = watched_fsync
    sys.addaudithook(hook)


def _break(function: str, at: int, error: str) -> None:
    module, _, names = function.partition(":")
    *owners, name = names.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    works, calls = getattr(owner, name), itertools.count(1)

    def breaking(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= at:
            raise ERRORS[error]()
        return works(*arguments, **options)

    setattr(owner, name, breaking)


def _count_steps(count: Callable[[], int]) -> None:
    from edgeda.console import TrainingDisplay

    step = TrainingDisplay.step

    def counted(self: TrainingDisplay, pairs: int) -> None:
        count()
        step(self, pairs)

    TrainingDisplay.step = counted  # type: ignore[method-assign]


def _jumping_clock() -> None:
    """The time of day goes a day back and a year forward in turn, as of a machine whose clock is set while it runs."""
    true, jumps = time.time, [0]

    def now() -> float:
        jumps[0] += 1
        return true() + (-86400.0 if jumps[0] % 2 else 31536000.0)

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)


if __name__ == "__main__":
    _serve()
