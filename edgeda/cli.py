"""The command line: each command is one call of one library function, with the same arguments."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, NoReturn

import typer

from edgeda import __version__
from edgeda.cli_bundle import bundle
from edgeda.cli_datasets import datasets
from edgeda.cli_export import export
from edgeda.cli_fleet import fleet
from edgeda.cli_measure import evaluate, profile
from edgeda.cli_options import Json
from edgeda.cli_predict import predict
from edgeda.cli_report import compare, report
from edgeda.cli_training import AdaptCommand, adapt, benchmark, prune
from edgeda.console import out, print_result, set_up_logging, shown, silence, stderr, terminal_width
from edgeda.distributed.world import speaks_first, world
from edgeda.errors import EdgedaError, Interrupted, MissingExtra, from_os_error

app = typer.Typer(
    name="edgeda",
    help="Adapt an image classifier to unlabelled cameras and distil it small enough for the device.",
    epilog="Start with: edgeda adapt --teacher r50 --student r18   (built-in images, no data needed). "
    "Exit codes: 0 done; 2 the input or request is wrong; 3 this machine lacks what it needs; 1 a bug. "
    "--debug anywhere shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


AGAIN_S = 0.1
"""How long after it was lost a signal comes again."""
MOST_OF_A_LINE = 4000
"""Characters of an error: a name that somebody made a megabyte long does not fill the terminal."""
INTERRUPTED = 130
"""What typer makes of Ctrl-C outside training."""
NO_THREAD = "can't start new thread"
"""What Python's RuntimeError says then."""


def _version(wanted: bool) -> None:
    if wanted:
        out(f"edgeda {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command(cls=AdaptCommand)(adapt)
for command in (prune, evaluate, export, bundle, predict, profile, compare, report, benchmark, fleet):
    app.command()(command)
app.add_typer(datasets)


@app.command()
def doctor(json_: Json = False) -> None:
    """What this machine can do, and which extra brings the rest."""
    from edgeda.doctor import diagnose, doctor_text

    found = diagnose()
    print_result(json_, found, lambda: doctor_text(found, terminal_width()))


def main() -> None:
    """Run the command line; every expected failure is one line and its exit code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    set_up_logging()
    if not world().leads:
        silence()
    with _one_line(debug), _terminated_like_interrupted():
        code = app(arguments, prog_name="edgeda", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is half-written is removed, and one line is said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = 0
    timers: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal heard
        heard = number
        raise KeyboardInterrupt

    def fell_into_a_hole(lost: sys.UnraisableHookArgs) -> None:
        """Nothing that is raised leaves a destructor or a callback from C: there the signal comes again, later."""
        if not heard or not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)
            return
        timers.append(threading.Timer(AGAIN_S, _thread.interrupt_main, [heard]))
        timers[-1].daemon = True
        timers[-1].start()

    hook, sys.unraisablehook = sys.unraisablehook, fell_into_a_hole
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if heard:  # what a library made of it, such as an import that failed
            raise KeyboardInterrupt from error
        raise
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


@contextlib.contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        stderr.print(shown(str(error)), markup=False)
        sys.exit(error.exit_code)
    except EdgedaError as error:
        _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was changed after the last saved state", 2, debug)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _fail(str(from_os_error(error, "reading or writing")), 2, debug)
    except ModuleNotFoundError as error:
        missing = MissingExtra(f"the package {error.name} is not installed; `edgeda doctor` says which extra brings it")
        _fail(str(missing), missing.exit_code, debug)
    except RecursionError:
        _fail("a file that was read is nested too deeply to be one of ours", 2, debug)
    except MemoryError:
        _fail("not enough memory for what was asked; ask for less", 2, debug)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug, said in one line
        if str(error) == NO_THREAD:
            _fail("the system gives no more threads (ulimit -u, or a container's limit); ask for fewer", 3, debug)
        usage = getattr(error, "format_message", None)  # click's errors, which typer ships its own copy of
        if usage is None:
            _fail(f"internal error: {type(error).__name__}: {error} (a bug; --debug shows the traceback)", 1, debug)
        if type(error).__name__ == "NoArgsIsHelpError":
            out(usage())
            sys.exit(2)
        context = getattr(error, "ctx", None)
        _fail(f"{usage().rstrip('.')}; see {context.command_path if context else 'edgeda'} --help", 2, debug)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if not speaks_first():
        sys.exit(code)
    stderr.quiet = False
    if debug:
        traceback.print_exc()
    stderr.print(f"error: {shown(' '.join(message.split()))[:MOST_OF_A_LINE]}", markup=False)
    sys.exit(code)
