"""What `faults.py` tries its faults on: images, a finished run with its export and predictions, and the tallies."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
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


def copy_run(t: Trials, out: Path, exported: bool) -> None:
    """A finished run, with its export or without."""
    shutil.copytree(t.whole, out, ignore=None if exported else shutil.ignore_patterns("exports"))


def export_is_whole(t: Trials, out: Path, what: str) -> None:
    """Nothing under a final name but what an undisturbed export has there."""
    wanted = (t.whole / "exports" / "student.onnx").read_bytes()
    place = out / "exports" / "student.onnx"
    if place.exists():
        t.expect(place.read_bytes() == wanted, f"{what}: half an ONNX file")


def predictions(folder: Path) -> dict[str, bytes]:
    """The saved images."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def one_line(t: Trials, ended: Ended, what: str, *words: str) -> None:
    """Exit code 2 and one line of error."""
    t.expect(ended.code == 2 and ended.line.startswith("error: ") and NO_TRACE not in ended.err, what, ended)
    t.expect(not words or any(word in ended.line for word in words), f"{what}: unclear", ended)
