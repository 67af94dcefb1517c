"""Run a command in a forked child that is watched: exit code, time, what it said, and every place it wrote to.

The hook is Python's own (PEP 578): it sees what Python code opens, renames, makes and removes, every process that is
started, every connection, and every class that a pickle asks for. What C code does is seen by comparing the folders
before and after, and by `benchmarks/hostile_inputs.py --strace`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 10.0
MEMORY_BYTES = 24 * 2**30
"""Address space of a child: what asks for more fails there, and not the machine."""
CODES = (0, 2, 3)

_WRITES = {
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.remove": (0,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
    "shutil.copyfile": (1,),
    "shutil.move": (0, 1),
}
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "socket.bind", "pickle.find_class")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/self/")
_PROGRAMS = ("nvidia-smi", "tegrastats")
"""What edgeda may start on its own account, besides Python."""


@dataclass(frozen=True)
class World:
    """The folders of one case; only `out`, `tmp` and `cache` may be written to, and `tmp` is empty at the end."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> World:
        """Fresh folders."""
        for name in ("in", "out", "tmp", "cache", "home"):
            (root / name).mkdir(parents=True)
        (root / "home" / "canary").write_text("tweet")
        return cls(root)

    @property
    def inputs(self) -> Path:
        return self.root / "in"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def writable(self) -> tuple[str, ...]:
        """Where a command may write."""
        return tuple(os.path.realpath(self.root / name) for name in ("out", "tmp", "cache"))

    def untouchable(self) -> dict[str, tuple[Any, ...]]:
        """What no command may change: every entry outside the folders that may be written to."""
        found = {}
        for at, folders, files in os.walk(os.fsencode(self.root)):
            if os.path.samefile(at, self.root):
                folders[:] = [name for name in folders if name not in (b"out", b"tmp", b"cache")]
            for name in [*folders, *files]:
                path = os.path.join(at, name)
                status = os.lstat(path)
                found[os.fsdecode(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
        return found


@dataclass
class Outcome:
    """How a case ended; `problems` is empty when all that must hold did."""

    code: int | None
    seconds: float
    out: str
    err: str
    cpu_s: float = 0.0
    """Seconds of one core; much less than `seconds` says that the machine was busy with something else."""
    problems: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        return self.code in (2, 3)


def run_caged(
    action: Callable[[], object],
    world: World,
    limit_s: float = LIMIT_S,
    started: Callable[[int], object] = lambda child: None,
) -> Outcome:
    """Fork, run `action` there with `world` as its home, temporary and current folder, and judge how it ended.

    `started` is called in this process with the child's id.
    """
    before = world.untouchable()
    told = {name: os.memfd_create(name) for name in ("out", "err", "events")}
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_child(action, world, told)
    started(child)
    status, cpu_s = _wait(child, limit_s)
    seconds = time.monotonic() - began
    texts = {name: _text(descriptor) for name, descriptor in told.items()}
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    outcome = Outcome(code, seconds, texts["out"], texts["err"], cpu_s)
    outcome.problems = list(_judged(outcome, limit_s, texts["events"].splitlines()))
    after = world.untouchable()
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    outcome.problems += [f"changed {path.replace(str(world.root), '')!r}" for path in changed]
    outcome.problems += [f"left {path.name!r} in TMPDIR" for path in (world.root / "tmp").iterdir()]
    return outcome


def _judged(outcome: Outcome, limit_s: float, events: list[str]) -> Iterator[str]:
    if outcome.code is None:
        yield f"still ran after {limit_s:g} s"
    elif outcome.code not in CODES:
        yield f"exit code {outcome.code}"
    if "Traceback" in outcome.err + outcome.out:
        yield "a traceback"
    lines = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    if len(lines) > 1:
        yield f"{len(lines)} error lines"
    if outcome.refused and not lines and "interrupted" not in outcome.err:
        yield "refused without an error line"
    raw = [char for char in outcome.err + outcome.out if not (char.isprintable() or char in "\n\t\r")]
    if raw:
        yield f"unprintable characters printed: {sorted(set(raw))[:3]!r}"
    yield from events


def _wait(child: int, limit_s: float) -> tuple[int | None, float]:
    """The status of a child, None if it had to be killed, and its seconds of CPU."""
    descriptor = os.pidfd_open(child)
    try:
        ready = select.select([descriptor], [], [], limit_s)[0]
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
        return status if ready else None, used.ru_utime + used.ru_stime
    finally:
        os.close(descriptor)


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, min(size, 1 << 20), 0).decode("utf-8", "surrogateescape")
    os.close(descriptor)
    return text


def _be_the_child(action: Callable[[], object], world: World, told: dict[str, int]) -> None:
    """Never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(told["out"], 1)
        os.dup2(told["err"], 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as a terminal in UTF-8
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(world.out)
        os.environ.update(HOME=str(world.root / "home"), TMPDIR=str(world.root / "tmp"))
        os.environ.update(EDGEDA_CACHE=str(world.root / "cache"), TORCHINDUCTOR_CACHE_DIR=str(world.root / "cache"))
        tempfile.tempdir = None
        sys.dont_write_bytecode = True  # what is imported late is not what the case writes
        sys.addaudithook(hook(world, told["events"]))
        try:
            action()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001 - what main() let through
        os.write(2, f"Traceback: {error!r}"[:1000].encode("utf-8", "backslashreplace"))
        code = 1
    finally:
        os._exit(code)


def program_is_ours(program: str) -> bool:
    """Whether edgeda may start it."""
    return os.path.basename(program) in (*_PROGRAMS, os.path.basename(sys.executable))


def hook(world: World, events: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Writes a line to the file `events` for everything that the child must not do."""
    allowed = world.writable

    def note(text: str) -> None:
        os.write(events, (text[:300].replace("\n", " ") + "\n").encode("utf-8", "backslashreplace"))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not (
                (flags or 0) & _WRITING or (isinstance(mode, str) and set(mode) & set("wax+"))
            ):
                return
            check(event, path)
        elif event in _WRITES:
            for at in _WRITES[event]:
                check(event, arguments[at])
        elif event == "subprocess.Popen":
            command = [os.fspath(word) for word in arguments[1]] if not isinstance(arguments[1], str) else []
            if not command or not program_is_ours(command[0]):
                note(f"started {arguments[1]!r}")
        elif event in _NEVER:
            note(f"{event} {arguments!r}")

    def check(event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        whole = os.path.realpath(os.path.join(os.getcwd(), os.fsdecode(path)))
        if not any(whole == place or whole.startswith(f"{place}/") for place in allowed) and not whole.startswith(
            _HARMLESS
        ):
            note(f"{event} {whole.replace(str(world.root), '')!r}")

    return watch


def command(*arguments: str) -> Callable[[], object]:
    """The command line, as `edgeda ARGUMENTS` runs it."""

    def run() -> None:
        from edgeda.cli import main

        sys.argv = ["edgeda", *arguments]
        main()

    return run


def guarded(call: Callable[[], object]) -> Callable[[], object]:
    """A function of the library under the command line's own handling of errors."""

    def run() -> None:
        from edgeda import cli
        from edgeda.console import set_up_logging

        set_up_logging()
        with cli._one_line(False):
            call()

    return run
