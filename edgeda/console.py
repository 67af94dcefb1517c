"""What a person sees: log lines and training progress on stderr, results on stdout."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Record = dict[str, Any]
ESTIMATE_S = 20.0
"""How long an epoch may last before the time left is guessed from its first steps."""

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


class _Lines(logging.Handler):
    """Warnings and notices as plain lines, wrapped by the terminal and never cut."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        stderr.print(prefix + shown(record.getMessage()).replace("\n", " "), markup=False)


def set_up_logging() -> None:
    """Show edgeda's own notices; other libraries only when something is wrong."""
    ours = logging.getLogger("edgeda")
    ours.handlers[:] = [_Lines()]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # its parent sets its own level


def silence() -> None:
    """Say nothing: another process of the same run speaks."""
    stderr.quiet = True


class TrainingDisplay:
    """A bar with pairs/s and time left where there is a terminal, and a line for every epoch."""

    def __init__(self) -> None:
        self._live = stderr.is_terminal
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._told, self._steps, self._left, self._first = True, 0, 0, 0.0

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """Announce a stage."""
        self.close()
        stderr.print(f"{name}: {_counted(epochs, 'epoch')} of {_counted(steps_per_epoch, 'batch', 'es')}", markup=False)
        self._told, self._steps, self._left = self._live, 0, epochs * steps_per_epoch - done
        if self._live:
            self._bar = Progress(
                TextColumn("  {task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=stderr, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(name, total=epochs * steps_per_epoch, completed=done, rate="")
            self._bar.start()

    def step(self, pairs: int) -> None:
        """Advance the bar by a batch."""
        if self._bar is not None:
            speed = self._bar.tasks[0].speed
            self._bar.update(self._task, advance=1, rate=f"{speed * pairs:.1f} pairs/s" if speed else "")
        if not self._told:
            self._estimate(pairs)

    def _estimate(self, pairs: int) -> None:
        """Before the first long epoch ends: how long all will take, from the steps after the first."""
        now, self._left = time.monotonic(), self._left - 1
        if not self._steps:
            self._first = now
        elif now - self._first >= ESTIMATE_S:
            seconds, self._told = (now - self._first) / self._steps, True
            left = _clock(seconds * self._left)
            stderr.print(f"  {pairs / seconds:.2g} pairs/s so far, about {left} left in this stage", markup=False)
        self._steps += 1

    def epoch(self, record: Record) -> None:
        """One line: losses, label-free score, accuracies, speed and time left in the stage."""
        where = f"  epoch {record['epoch']}/{record['epochs']}" if record["epochs"] else f"{record['stage']}, as it is"
        parts = [where]
        for role, scores in record["networks"].items():
            known = scores["target_accuracy"]
            shown = f"{known:.1f}% right on target" if known is not None else f"target im {scores['scores']['im']:.2f}"
            parts.append(f"{role.replace('_', '-')} {shown}")
        if not record["epochs"]:
            stderr.print(" | ".join(parts), markup=False)
            return
        self._told = True
        parts.append(" ".join(f"{name} {value:.3f}" for name, value in record["losses"].items()))
        left = record["seconds"] * (record["epochs"] - record["epoch"])
        parts.append(f"{record['pairs_per_s']:.1f} pairs/s" + (f", {_clock(left)} left" if left else ""))
        stderr.print(" | ".join(parts), markup=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _counted(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}" + ("" if count == 1 else plural)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shown(text: str) -> str:
    """Text as a terminal may have it: what is not printable, line breaks aside, is escaped.

    Class names and file names come from others: a terminal obeys escape characters, shows text backwards after U+202E,
    and cannot take the stray bytes of a file name that is not UTF-8.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def out(text: str) -> None:
    """Print a result on stdout."""
    if sys.stdout is not None and not stderr.quiet:  # None: closed with >&-
        sys.stdout.write(shown(text) + "\n")
        sys.stdout.flush()


def print_result(as_json: bool, result: Record, text: Callable[[], str]) -> None:
    """Print a command's result on stdout: one JSON object, or text."""
    if not stderr.quiet:
        out(json.dumps(result, indent=2, allow_nan=False) if as_json else text())


def terminal_width() -> int:
    """Columns of the terminal, at least 80 and at most 120; 100 where there is none."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 80), 120)
