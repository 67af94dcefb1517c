"""Cases under strace: every file that is opened for writing, made, renamed or removed, every program, every connection.

Python's audit hook does not see what C code does; strace does. ONNX Runtime is not imported before the child is traced,
so that what it does when it is loaded is seen, too.
"""

from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.cage import Outcome, World, program_is_ours, run_caged
from tests.fuzz.readers import Case
from tests.fuzz.seeds import Seeds

SAMPLE = 60
LIMIT_S = 120.0
"""Of one case: every child loads its libraries, and each system call stops it."""
CALLS = (
    "openat", "?open", "openat2", "?creat", "?rename", "?renameat", "renameat2", "?mkdir", "mkdirat", "?rmdir",
    "?unlink", "unlinkat", "?symlink", "symlinkat", "?link", "linkat", "truncate", "mknodat", "?mknod",
    "connect", "execve",
)  # fmt: skip
_TWO_PATHS = ("rename", "renameat", "renameat2")
_SECOND_PATH = ("symlink", "symlinkat", "link", "linkat")
_WRITING = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)")
_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_HARMLESS = ("/dev/null", "/dev/tty", "/proc/")


@dataclass
class Trace:
    """What strace saw of a case; paths are absolute, links followed."""

    outcome: Outcome
    inside: int = 0
    """Times that something was written, made, renamed or removed where it may be."""
    memory: list[str] = field(default_factory=list)
    """Names in /dev/shm, which is memory: what was made there and not removed is among the problems, too."""
    problems: list[str] = field(default_factory=list)


def traced(action: Callable[[], object], world: World) -> Trace:
    """Run `action` as `run_caged` does, under strace from before its first line."""
    log = world.root.parent / f"{world.root.name}.strace"
    go, told = os.pipe()
    tracers: list[subprocess.Popen[bytes]] = []

    def attach(child: int) -> None:
        command = ["strace", "-f", "-q", "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}", "-p", str(child)]
        tracers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE))
        status = Path(f"/proc/{child}/status")
        while "TracerPid:\t0\n" in status.read_text():
            if tracers[0].poll() is not None:
                break
            time.sleep(0.01)
        os.write(told, b"x")

    def act() -> None:
        os.read(go, 1)
        action()

    try:
        outcome = run_caged(act, world, LIMIT_S, attach)
        _, said = tracers[0].communicate(timeout=LIMIT_S)
    finally:
        os.close(go)
        os.close(told)
    if not log.is_file() or b"attach" in said:
        raise RuntimeError(f"strace could not follow the child: {said.decode(errors='replace').strip()}")
    found = Trace(outcome)
    for name, words, result in calls(log.read_text("utf-8", "surrogateescape")):
        judge(found, world, name, words, result)
    log.unlink()
    found.problems += [f"left {path}" for path in found.memory if os.path.lexists(path)]
    return found


def calls(text: str) -> Iterator[tuple[str, str, int]]:
    """System calls of a log with their arguments and result; a call that another thread interrupts is put together."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        process = line.partition(" ")[0]
        if line.endswith("<unfinished ...>"):
            begun[process] = line.removesuffix("<unfinished ...>")
            continue
        resumed = re.match(r"\d+ +<\.\.\. \w+ resumed>(.*)", line)
        if resumed:
            line = begun.pop(process, "") + resumed[1]
        call = _CALL.match(line)
        if call:
            yield call[2], call[3], 0 if call[4] == "?" else int(call[4])
    for line in begun.values():  # it ended meanwhile
        call = re.match(r"\d+ +(\w+)\((.*)", line)
        if call:
            yield call[1], call[2], 0


def judge(found: Trace, world: World, name: str, words: str, result: int) -> None:
    """Note a call that wrote where it may not, started a program or connected to something."""
    if name == "connect":
        if not ("AF_UNIX" in words and result < 0):  # such as the name service's cache, which is not there
            found.problems.append(f"connect {words[:100]}")
        return
    if result < 0 or (name.startswith("open") and not _WRITING.search(words)):
        return
    paths = [os.path.join(at or str(world.out), _unquoted(path)) for at, path in _PATH.findall(words)]
    if name == "execve":
        if not program_is_ours(paths[0]):
            found.problems.append(f"execve {words[:100]}")
        return
    chosen = paths[:2] if name in _TWO_PATHS else paths[1:2] if name in _SECOND_PATH else paths[:1]
    for path in chosen:
        folder, last = os.path.split(path)
        whole = os.path.join(os.path.realpath(folder), last)
        if any(whole.startswith(f"{place}/") for place in world.writable):
            found.inside += 1
        elif whole.startswith("/dev/shm/"):
            found.memory.append(whole)
        elif not whole.startswith(_HARMLESS):
            found.problems.append(f"{name} {whole}"[:200])


def _unquoted(text: str) -> str:
    """A path as strace prints it: C's escapes, in octal what is not ASCII."""
    return os.fsdecode(ast.literal_eval(f'b"{text}"'))


def sampled(by_reader: dict[str, list[Case]], count: int) -> list[Case]:
    """`count` cases, in turn from every reader."""
    shuffled = {name: random.Random(name).sample(found, len(found)) for name, found in by_reader.items()}
    turns = [found[turn] for turn in range(count) for found in shuffled.values() if turn < len(found)]
    return turns[:count]


def trace(seeds: Seeds, root: Path, by_reader: dict[str, list[Case]], count: int = SAMPLE) -> int:
    """A sample of all readers under strace: a table on stdout, each problem on stderr; 1 when there is any."""
    if "onnxruntime" in sys.modules or shutil.which("strace") is None:
        raise RuntimeError("needs strace, and no ONNX Runtime in this process")
    sys.dont_write_bytecode = True
    rows: dict[str, list[int]] = {}
    for case in sampled(by_reader, count):
        world = World.make(root / "case")
        case.place(world)
        found = traced(case.act(world), world)
        problems = [*found.outcome.problems, *dict.fromkeys(found.problems)]
        row = rows.setdefault(case.reader, [0, 0, 0, 0, 0])
        for at, value in enumerate((1, found.outcome.refused, found.inside, bool(found.memory), bool(problems))):
            row[at] += value
        for text in problems:
            print(f"{case.reader}: {case.name!r}: {text!r}", file=sys.stderr, flush=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(os.fsencode(root / "case"))
    print("| reader | inputs | refused | writes in its folders | inputs with semaphores in /dev/shm | problems |")
    print("|---|---:|---:|---:|---:|---:|")
    rows["**all**"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(map(str, row))} |")
    return 1 if rows["**all**"][4] else 0
