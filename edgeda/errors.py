"""Every failure a user can meet, and the exit code it ends the command with.

    EdgedaError                 an expected failure: one line, no traceback
    |-- InputError         2    the input or the request is wrong
    |   |-- WrongKey       2    a key of a recipe has a value it cannot have
    |   |-- Diverged       2    training reached a loss or gradient that is not finite
    |   `-- Interrupted    2    Ctrl-C: the state is saved, the message says how to go on
    `-- MachineError       3    this machine lacks what the request needs
        |-- MissingExtra   3    ... and a `pip install` would bring it
        `-- WorkerLost     3    a process of a run on several devices died, or another one failed

Anything else that leaves a command is a bug and exits with 1.
"""

from __future__ import annotations

import difflib
import errno
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType


class EdgedaError(Exception):
    """An expected failure; the message says what, where and what to do, in one line."""

    exit_code = 1


class InputError(EdgedaError):
    """The input or the request is wrong."""

    exit_code = 2


class WrongKey(InputError):
    """A key of a recipe has a value it cannot have: `problem` says why, for whoever knows where the value came from."""

    def __init__(self, key: str, problem: str, where: str = "recipe") -> None:
        super().__init__(f"{where}: {key}: {problem}")
        self.key, self.problem = key, problem


class Diverged(InputError):
    """Training produced a loss or a gradient that is not finite."""


class Interrupted(InputError):
    """The user stopped the command; what was done is kept."""


class MachineError(EdgedaError):
    """This machine lacks what the request needs."""

    exit_code = 3


class MissingExtra(MachineError):
    """A package of an optional extra is not installed."""


class WorkerLost(MachineError):
    """A process of a run on several devices is gone; those that are left cannot go on."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra of edgeda brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs the package {module.split('.')[0]} ({one_line(error)}); "
            f"install it with: pip install 'edgeda[{extra}]'"
        ) from error


def user_path(text: str) -> Path:
    """A path as the user wrote it, `~` resolved; InputError for the home of a user who does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"no such path: {text} ({one_line(error)})") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or `; known: ...` when none is near."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names)}"


def some(names: Sequence[str], most: int = 5, longest: int | None = 60) -> str:
    """`'a', 'b' and 3 more`: the first `most` names, as far as `longest` characters."""
    more = len(names) - most
    return ", ".join(f"'{name[:longest]}'" for name in names[:most]) + (f" and {more} more" if more > 0 else "")


def from_os_error(error: OSError, doing: str) -> InputError:
    """The one line for a disk that is full, a folder that is not ours, a file that is gone."""
    where = f": {error.filename}" if error.filename and str(error.filename) not in doing else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"the disk is full while {doing}{where}; free some space and try again")
    reason = error.strerror or one_line(error)
    return InputError(f"{reason} while {doing}{where}")


def one_line(error: BaseException) -> str:
    """The message of any exception without line breaks, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
