"""Faults on purpose: kills, full disks, read-only folders, signals, clocks and torn files, and what is left after them.

    python benchmarks/faults.py [--kills 100] [--only adapt-kill,torn,...] [--part K/N] [--seed 0]
        [--out FILE]

Prints a Markdown row for each fault: times tried, and what came of it. A try that ends otherwise than it should is
listed below the table, and the exit code is then 1. Real full disks and read-only folders need root (tmpfs mounts).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from long_haul import write_images

from tests.faults.driver import Driver, Ended, adapt_arguments, left_over, outcome

SHORT = ["--epochs", 1, "--set", "train.warmup_epochs=0"]
NO_TRACE = "Traceback"


class Trials:
    """What the faults are tried on: images, a finished run with its export and predictions, and the tallies."""

    def __init__(self, work: Path, seed: int, kills: int, part: tuple[int, int] = (1, 1)) -> None:
        self.work, self.random, self.kills, self.part = work, random.Random(seed), kills, part
        self.images = write_images(work / "images")
        environment = {"EDGEDA_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **environment}
        self.driver = Driver(work, self.environment)
        self.wrong: list[str] = []
        self.rows: list[tuple[str, int, str]] = []
        self.whole = work / "whole" / "run"
        self.whole.parent.mkdir()
        self.times = {"adapt": self.must("adapt", self.adapt(self.whole)).seconds}
        self.short = work / "short" / "run"
        self.short.parent.mkdir()
        ended = self.must("short adapt", self.adapt(self.short, *SHORT), below=self.short)
        self.short_s, self.short_events = ended.seconds, ended.events
        ended = self.must("export", self.export(self.whole), below=self.whole)
        self.times["export"], self.export_events = ended.seconds, ended.events
        self.saved = work / "saved"
        ended = self.must("predict", self.predict(self.saved), below=self.saved)
        self.times["predict"], self.predict_events = ended.seconds, ended.events

    def changes(self, count: int) -> range:
        """Which of `count` changes this part of a sweep tries: the K-th of every N."""
        return range(self.part[0], count + 1, self.part[1])

    def adapt(self, out: Path, *more: object) -> list[object]:
        """A command that trains."""
        return [*adapt_arguments(self.images["source"], self.images["target"], out), *more]

    def export(self, run: Path) -> list[object]:
        """A command that exports."""
        return ["export", run, "--threads", 1]

    def predict(self, out: Path) -> list[object]:
        """A command that saves predictions."""
        model = self.whole / "exports" / "student.onnx"
        return ["predict", model, "--source", self.images["target"], "--save", out, "--json",
                "--engine", "onnxruntime", "--threads", 1]  # fmt: skip

    def must(self, what: str, command: list[object], **options: Any) -> Ended:
        """Run what must go well."""
        ended = self.driver.run(*command, **options)
        if ended.code:
            raise SystemExit(f"{what} without a fault ended with {ended.code}: {ended.err}")
        return ended

    def again(self, out: Path, *more: object, **options: Any) -> Ended:
        """Go on with a run, or begin it again where it had not begun."""
        if (out / "recipe.yaml").is_file():
            return self.driver.run("adapt", "--out", out, "--resume", **options)
        return self.driver.run(*self.adapt(out, *more), **options)

    def expect(self, true: bool, what: str, ended: Ended | None = None) -> None:
        """Note what is not as it should be."""
        if not true:
            self.wrong.append(what + (f" (exit {ended.code}: {ended.line})" if ended else ""))
            print(f"WRONG: {self.wrong[-1]}", file=sys.stderr, flush=True)

    def row(self, fault: str, tried: int, came: str) -> None:
        """A line of the table."""
        self.rows.append((fault, tried, came))
        print(f"| {fault} | {tried} | {came} |", flush=True)

    @contextmanager
    def fresh(self, name: str = "run") -> Iterator[Path]:
        """A run directory of that name in a folder of its own."""
        with tempfile.TemporaryDirectory(dir=self.work, prefix="trial-") as folder:
            yield Path(folder) / name

    def finished_as(self, out: Path, whole: Path, what: str) -> bool:
        """Whether a run has ended as the undisturbed one, and left nothing."""
        before = len(self.wrong)
        self.expect((out / "summary.json").is_file(), f"{what}: no summary")
        if len(self.wrong) == before:
            self.expect(outcome(out) == outcome(whole), f"{what}: another outcome")
            self.expect(not left_over(out), f"{what}: left over {left_over(out)}")
        return len(self.wrong) == before


def adapt_kill(t: Trials) -> None:
    """Kill -9 at random moments, three or four times in a run."""
    kills, runs, lost, same = 0, 0, [], 0
    while kills < t.kills:
        runs += 1
        with t.fresh() as out:
            steps = here = 0
            for _ in range(t.random.randint(2, 4)):
                moment = t.random.uniform(0.0, t.times["adapt"] * 0.9)
                ended = t.again(out, after=moment)
                steps += ended.steps
                if ended.code == 0:
                    break
                t.expect(ended.code == -signal.SIGKILL, "adapt killed", ended)
                kills += 1
                here += 1
            ended = t.again(out)
            t.expect(ended.code == 0, "adapt resumed", ended)
            again = max(0, steps + ended.steps - 24)
            t.expect(again <= here, f"{again} steps were lost in {here} kills")
            lost.append(again)
            same += t.finished_as(out, t.whole, "adapt killed at random moments")
    t.row("`adapt` killed (kill -9) at random moments, resumed", kills,
          f"{same} of {runs} runs end bit for bit as the undisturbed one; {sum(lost)} steps trained twice")  # fmt: skip


def adapt_each(t: Trials) -> None:
    """Kill -9 at every change of a file."""
    same = 0
    for at in t.changes(t.short_events):
        with t.fresh() as out:
            ended = t.driver.run(*t.adapt(out, *SHORT), below=out, at=at)
            t.expect(ended.code == -signal.SIGKILL, f"adapt killed at change {at}", ended)
            ended = t.again(out, *SHORT)
            t.expect(ended.code == 0, f"adapt resumed after change {at}", ended)
            same += t.finished_as(out, t.short, f"adapt killed at change {at}")
    t.row("`adapt` killed at every single change of a file below RUN, resumed", len(t.changes(t.short_events)),
          f"{same} end bit for bit as the undisturbed run, with nothing left over")  # fmt: skip


def copy_run(t: Trials, out: Path, exported: bool) -> None:
    """A finished run, with its export or without."""
    shutil.copytree(t.whole, out, ignore=None if exported else shutil.ignore_patterns("exports"))


def export_is_whole(t: Trials, out: Path, what: str) -> None:
    """Nothing under a final name but what an undisturbed export has there."""
    wanted = (t.whole / "exports" / "student.onnx").read_bytes()
    place = out / "exports" / "student.onnx"
    if place.exists():
        t.expect(place.read_bytes() == wanted, f"{what}: half an ONNX file")


def export_kill(t: Trials) -> None:
    """Kill -9 at random moments; every tenth is exported to its end."""
    whole = 0
    with t.fresh() as out:
        for number in range(t.kills):
            if number % 10 == 0:
                shutil.rmtree(out, ignore_errors=True)
                copy_run(t, out, exported=number % 20 == 0)
            ended = t.driver.run(*t.export(out), after=t.random.uniform(0.0, t.times["export"]))
            t.expect(ended.code in (0, -signal.SIGKILL), "export killed", ended)
            export_is_whole(t, out, "export killed")
            if number % 10 == 9:
                ended = t.driver.run(*t.export(out))
                t.expect(ended.code == 0, "export after kills", ended)
                export_is_whole(t, out, "export after kills")
                t.expect(not left_over(out), f"export after kills: left over {left_over(out)}")
                whole += ended.code == 0
    t.row("`export` killed at random moments, begun again", t.kills,
          f"never half a file under a final name; each of {whole} exports after ten kills is bit for bit the "
          "undisturbed one and removes what the killed ones left")  # fmt: skip


def predictions(folder: Path) -> dict[str, bytes]:
    """The saved images."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def predict_kill(t: Trials) -> None:
    """Kill -9 at random moments, and at changes of files."""
    wanted, kept = predictions(t.saved), []
    for number in range(2 * t.kills):
        with t.fresh("saved") as out:
            if number % 2:
                options: dict[str, Any] = {"after": t.random.uniform(0.0, t.times["predict"])}
            else:
                options = {"below": out, "at": t.random.randint(1, t.predict_events)}
            ended = t.driver.run(*t.predict(out), **options)
            t.expect(ended.code in (0, -signal.SIGKILL), "predict killed", ended)
            found = predictions(out) if out.is_dir() else {}
            t.expect(found.items() <= wanted.items(), "predict killed: half an image under a final name")
            kept.append(len(found))
            if number % 10 == 9:
                t.expect(t.driver.run(*t.predict(out), "--overwrite").code == 0, "predict --overwrite after a kill")
    t.row("`predict --save` killed, half at random moments and half at a change of a file", 2 * t.kills,
          f"every saved image is whole ({min(kept)} to {max(kept)} of {len(wanted)} were there); one that was being "
          "written is hidden and named .part")  # fmt: skip


def one_line(t: Trials, ended: Ended, what: str, *words: str) -> None:
    """Exit code 2 and one line of error."""
    t.expect(ended.code == 2 and ended.line.startswith("error: ") and NO_TRACE not in ended.err, what, ended)
    t.expect(not words or any(word in ended.line for word in words), f"{what}: unclear", ended)


def disk_full(t: Trials) -> None:
    """ENOSPC from the n-th write on, for every n."""
    tried = same = cached = 0
    for at in t.changes(t.short_events):
        with t.fresh() as out:
            ended = t.driver.run(*t.adapt(out, *SHORT), below=out, at=at, strike="ENOSPC")
            tried += 1
            if ended.code == 0:  # only removing was left to do
                cached += 1
            else:
                one_line(t, ended, f"adapt, disk full at change {at}", "the disk is full")
                t.expect(not left_over(out), f"adapt, disk full at change {at}: left over {left_over(out)}")
            ended = t.again(out, *SHORT)
            t.expect(ended.code == 0, f"adapt after a full disk at change {at}", ended)
            same += t.finished_as(out, t.short, f"adapt after a full disk at change {at}")
    t.row(
        "disk full from the n-th change of a file on, for every n: `adapt`",
        tried,
        f"one line naming the file, exit code 2; {same} resumed to the undisturbed outcome; no temporary file left",
    )
    tried = 0
    for at in t.changes(t.export_events):
        with t.fresh() as out:
            copy_run(t, out, exported=bool(at % 2))
            ended = t.driver.run(*t.export(out), below=out / "exports", at=at, strike="ENOSPC")
            tried += 1
            if ended.code:
                one_line(t, ended, f"export, disk full at change {at}", "the disk is full")
            export_is_whole(t, out, f"export, disk full at change {at}")
            t.expect(not left_over(out), f"export, disk full at change {at}: left over {left_over(out)}")
    t.row(
        "the same: `export`",
        tried,
        "one line, exit code 2; an earlier export stays; nothing half-written, nothing left",
    )
    tried = 0
    wanted = predictions(t.saved)
    for at in t.changes(t.predict_events):
        with t.fresh("saved") as out:
            ended = t.driver.run(*t.predict(out), below=out, at=at, strike="ENOSPC")
            tried += 1
            if ended.code:
                one_line(t, ended, f"predict, disk full at change {at}", "the disk is full")
            found = predictions(out) if out.is_dir() else {}
            t.expect(found.items() <= wanted.items() and not left_over(out), f"predict, disk full at change {at}: torn")
    t.row("the same: `predict --save`", tried, "one line, exit code 2; what is there is whole")


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


def signals(t: Trials) -> None:
    """SIGTERM and SIGINT at random moments of every command."""
    for name in ("int", "term"):
        codes: Counter[int] = Counter()
        for number in range(max(10, t.kills * 3 // 10)):
            kind = ("adapt", "adapt", "export", "predict")[number % 4]
            with t.fresh() as out:
                if kind == "export":
                    copy_run(t, out, exported=False)
                command = {"adapt": t.adapt, "export": t.export, "predict": t.predict}[kind](out)
                ended = t.driver.run(*command, after=t.random.uniform(0.0, t.times[kind]), strike=name)
                codes[ended.code] += 1
                t.expect(ended.code in (0, 2, -signal.SIGINT, -signal.SIGTERM), f"{kind} and SIG{name.upper()}", ended)
                t.expect(NO_TRACE not in ended.err, f"{kind} and SIG{name.upper()}: a traceback", ended)
                said = ended.line.startswith(("error: interrupted", "stopped"))
                t.expect(ended.code != 2 or said, f"{kind} and SIG{name.upper()}: not one line", ended)
                t.expect(not left_over(out.parent), f"{kind} and SIG{name.upper()}: left over {left_over(out.parent)}")
                if kind == "adapt" and ended.code:
                    ended = t.again(out)
                    t.expect(ended.code == 0, f"adapt resumed after SIG{name.upper()}", ended)
                    t.finished_as(out, t.whole, f"adapt after SIG{name.upper()}")
        found = ", ".join(f"exit code {code}: {count}" for code, count in sorted(codes.items()))
        t.row(f"SIG{name.upper()} at random moments of adapt, export, predict", sum(codes.values()),
              f"{found}; one line, no traceback, nothing left; adapt resumes to the undisturbed outcome")  # fmt: skip
    early: Counter[int] = Counter()
    for number in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeda", "evaluate", str(t.whole), "--data", str(t.images["test"])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=t.environment,
            cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
        time.sleep(0.1 + number * 0.15)
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        _, said = process.communicate()
        early[process.returncode] += 1
        t.expect(
            process.returncode in (0, 2, -2, -15) and NO_TRACE not in said, f"early signal {number}: {said[-300:]}"
        )
    found = ", ".join(f"exit code {code}: {count}" for code, count in sorted(early.items()))
    t.row("SIGINT or SIGTERM while a command starts (0.1 to 3 s, modules are still being loaded)", 20,
          f"{found} (negative: ended by the signal itself); no traceback")  # fmt: skip


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


FAULTS: dict[str, Callable[[Trials], None]] = {
    "torn": torn, "predict-kill": predict_kill, "clocks": clocks, "adapt-kill": adapt_kill, "signals": signals,
    "real-disk": real_disk, "export-kill": export_kill, "disk-full": disk_full, "adapt-each": adapt_each,
}  # fmt: skip


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def main() -> None:
    """Try the faults one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help="the K-th of N parts of a sweep")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        trials = Trials(Path(work), options.seed, options.kills, options.part)
        print("| fault | times tried | outcome |\n|---|---:|---|", flush=True)
        try:
            for name in options.only.split(","):
                FAULTS[name](trials)
        finally:
            trials.driver.close()
    table = ["| fault | times tried | outcome |", "|---|---:|---|",
             *(f"| {fault} | {tried} | {came} |" for fault, tried, came in trials.rows), "",
             f"{sum(tried for _, tried, _ in trials.rows)} tries in {(time.monotonic() - started) / 60:.1f} minutes, "
             f"seed {options.seed}; {len(trials.wrong)} ended otherwise than they should.", *trials.wrong]  # fmt: skip
    print("\n".join(table[-1 - len(trials.wrong) :]))
    if options.out:
        options.out.write_text("\n".join(table) + "\n", encoding="utf-8")
    sys.exit(bool(trials.wrong))


if __name__ == "__main__":
    main()
