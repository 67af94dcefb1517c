"""Disks that are full, may only be read, or have damaged what was written; and clocks that jump."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_trials import SHORT, Trials, copy_run, export_is_whole, one_line, predictions

from tests.faults.driver import Ended, left_over


def disk_full(t: Trials) -> None:
    """ENOSPC from the n-th change on, for every n."""
    codes: Counter[int] = Counter()
    same = 0
    for at in t.changes(t.short_events):
        with t.fresh() as out:
            ended = t.driver.run(*t.adapt(out, *SHORT), below=out, at=at, strike="ENOSPC")
            no_room(t, codes, ended, out, f"adapt, disk full at change {at}")
            ended = t.again(out, *SHORT)
            t.expect(ended.code == 0, f"adapt after a full disk at change {at}", ended)
            same += t.finished_as(out, t.short, f"adapt after a full disk at change {at}")
    t.row("disk full from the n-th change of a file on, for every n: `adapt`", codes.total(),
          f"{codes[2]} one line, exit code 2, {codes[0]} had only to remove; nothing half-written; "
          f"{same} resumed to the undisturbed outcome")  # fmt: skip
    codes = Counter()
    for at in t.changes(t.export_events):
        with t.fresh() as out:
            copy_run(t, out, exported=bool(at % 2))
            ended = t.driver.run(*t.export(out), below=out / "exports", at=at, strike="ENOSPC")
            no_room(t, codes, ended, out, f"export, disk full at change {at}")
            export_is_whole(t, out, f"export, disk full at change {at}")
    t.row("the same: `export`", codes.total(),
          f"{codes[2]} one line, exit code 2, {codes[0]} had only to remove; an earlier export stays")  # fmt: skip
    codes = Counter()
    wanted = predictions(t.saved)
    for at in t.changes(t.predict_events):
        with t.fresh("saved") as out:
            ended = t.driver.run(*t.predict(out), below=out, at=at, strike="ENOSPC")
            no_room(t, codes, ended, out, f"predict, disk full at change {at}")
            found = predictions(out) if out.is_dir() else {}
            t.expect(found.items() <= wanted.items(), f"predict, disk full at change {at}: torn")
    t.row("the same: `predict --save`", codes.total(),
          f"{codes[2]} one line, exit code 2, {codes[0]} had only to remove; what is there is whole")  # fmt: skip


def no_room(t: Trials, codes: Counter[int], ended: Ended, out: Path, what: str) -> None:
    """One line, and nothing half-written; 0 where nothing was left to write."""
    codes[ended.code] += 1
    if ended.code:
        one_line(t, ended, what, "the disk is full")
        t.expect(not left_over(out), f"{what}: left over {left_over(out)}")


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def real_disk(t: Trials) -> None:
    """A tmpfs that is too small, and one that may only be read."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        t.row("a real full disk and a read-only one", 0, "not tried: needs root")
        return
    needed = sum(path.stat().st_size for path in t.short.rglob("*") if path.is_file()) // 1024 + 4096
    tried = same = 0
    for part in range(20):
        size = max(8, int(needed * (part + 0.5) / 20))
        with tmpfs(t.work / "small", f"size={size}k") as disk:
            out = disk / "run"
            ended = t.driver.run(*t.adapt(out, *SHORT))
            tried += 1
            if ended.code:
                one_line(t, ended, f"adapt on {size} kB", "the disk is full", "No space left")
                t.expect(not left_over(disk), f"adapt on {size} kB: left over {left_over(disk)}")
            subprocess.run(["mount", "-o", f"remount,size={4 * needed}k", str(disk)], check=True)
            ended = t.again(out, *SHORT)
            t.expect(ended.code == 0, f"adapt on {size} kB, then more", ended)
            same += t.finished_as(out, t.short, f"adapt on {size} kB, then more")
    t.row("a tmpfs that is too small, 20 sizes: `adapt`", tried,
          f"one line, exit code 2; with more room {same} resumed to the undisturbed outcome")  # fmt: skip
    tried = 0
    wanted = predictions(t.saved)
    for part in range(12):
        with tmpfs(t.work / "small", f"size={max(4, 10 * part)}k") as disk:
            ended = t.driver.run(*t.predict(disk / "saved"))
            tried += 1
            if ended.code:
                one_line(t, ended, "predict on a small disk", "the disk is full", "No space left")
            found = predictions(disk / "saved") if (disk / "saved").is_dir() else {}
            t.expect(found.items() <= wanted.items(), "predict on a small disk: half an image")
    for part in range(8):
        with tmpfs(t.work / "small", f"size={256 * part + 64}k") as disk:
            ended = t.driver.run(*t.export(t.whole), "--out", disk / "exports")
            tried += 1
            if ended.code:
                one_line(t, ended, "export on a small disk", "the disk is full", "No space left")
            t.expect(not left_over(disk), f"export on a small disk: left over {left_over(disk)}")
            place = disk / "exports" / "student.onnx"
            t.expect(not place.exists() or place.stat().st_size > 1e6, "export on a small disk: half a file")
    t.row(
        "the same: `predict --save` (12 sizes), `export --out` (8)",
        tried,
        "one line, exit code 2; nothing half-written",
    )
    with tmpfs(t.work / "read-only", "size=64m") as disk:
        shutil.copytree(t.whole, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        commands = (t.adapt(disk / "new"), t.adapt(disk / "run", "--overwrite"), t.export(disk / "run"),
                    t.predict(disk / "saved"), [*t.predict(t.work / "x"), "--collect", disk / "saved"],
                    ["report", disk / "run"],
                    ["bundle", disk / "run", "--for", "python", "--out", disk / "kit"])  # fmt: skip
        for command in commands:
            shutil.rmtree(t.work / "x", ignore_errors=True)
            one_line(t, t.driver.run(*command), f"read-only: {command[0]}", "ead-only file system")
    t.row("a read-only output (tmpfs): adapt, adapt --overwrite, export, predict --save, --collect, report, bundle",
          len(commands), "one line that says so, exit code 2")  # fmt: skip


def torn(t: Trials) -> None:
    """Damaged checkpoints, in every way that a power cut or a bad disk leaves them."""
    import logging

    from edgeda.checkpoint import FILE, PREVIOUS, load_checkpoint
    from edgeda.errors import InputError

    logging.getLogger("edgeda").setLevel(logging.ERROR)
    saved = (t.short / "checkpoint" / FILE).read_bytes()
    found: Counter[str] = Counter()
    with t.fresh("checkpoint") as folder:
        folder.mkdir()
        for number in range(1000):
            kind = ("cut off", "cut off and zeroed", "a bit flipped", "a page zeroed")[number % 4]
            place = t.random.randrange(len(saved))
            data = bytearray(saved[:place] if number % 4 < 2 else saved)
            if number % 4 == 1:
                data += bytes(len(saved) - place)
            elif number % 4 == 2:
                data[place] ^= 1 << t.random.randrange(8)
            elif number % 4 == 3:
                data[place : place + 4096] = bytes(len(data[place : place + 4096]))
            if bytes(data) == saved:
                continue
            with_previous = number % 8 < 4
            (folder / FILE).write_bytes(data)
            if with_previous:
                (folder / PREVIOUS).write_bytes(saved)
            else:
                (folder / PREVIOUS).unlink(missing_ok=True)
            try:
                state = load_checkpoint(folder)
                t.expect(with_previous and state is not None, f"a checkpoint {kind} at {place} was taken as good")
                found["the one before it was loaded"] += 1
            except InputError:
                t.expect(not with_previous, f"a checkpoint {kind} at {place}: the one before it was not loaded")
                found["one line (there was none before it)"] += 1
    t.row("a checkpoint cut off, zeroed, or with one flipped bit or a zeroed page, at random places",
          sum(found.values()),
          "; ".join(f"{what}: {count}" for what, count in found.items()) + "; never taken as good")  # fmt: skip


def clocks(t: Trials) -> None:
    """The time of day jumps a day back and a year forward at every look."""
    for _ in range(3):
        with t.fresh() as out:
            t.expect(t.driver.run(*t.adapt(out), clock=True).code == 0, "adapt with a jumping clock")
            t.finished_as(out, t.whole, "adapt with a jumping clock")
            t.expect(t.driver.run(*t.export(out), clock=True).code == 0, "export with a jumping clock")
            export_is_whole(t, out, "export with a jumping clock")
            t.expect(t.driver.run(*t.predict(out.parent / "saved"), clock=True).code == 0, "predict, jumping clock")
            t.expect(predictions(out.parent / "saved") == predictions(t.saved), "predict, jumping clock: other images")
    t.row("the time of day jumps a day back and a year forward at every look: adapt, export, predict", 9,
          "the same outcome, bit for bit")  # fmt: skip
