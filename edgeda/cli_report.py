"""The commands that put results side by side, or on one page: compare, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeda.cli_options import Json, Threads
from edgeda.console import TrainingDisplay, print_result, terminal_width
from edgeda.errors import InputError, from_os_error, require
from edgeda.report.page import GENERATOR
from edgeda.whole_file import check_writable


def compare(
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Finished run directories, in one table; default: the newest run."),
    ] = None,
    pruned: Annotated[
        str | None,
        typer.Option(
            metavar="CUTS",
            help="Add the first run's teacher pruned by these shares of its GMACs (0.12,0.45), and by as much as "
            "gives it the student's GMACs and the student's measured latency. A trained version beside the run is "
            "used where there is one; otherwise only the cost is measured.",
        ),
    ] = None,
    train_pruned: Annotated[
        bool,
        typer.Option("--train-pruned", help="Train the pruned teachers that are missing, as `edgeda prune` does."),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Most that one image may take, such as 5ms: says which row to ship."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the comparison as one HTML file.")] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="Seconds of measuring for each row.", min=0.01)] = 0.5,
    json_: Json = False,
) -> None:
    """Networks and exports of runs in one table.

    Accuracy, GMACs, parameters, size and latency of each.
    """
    require("torch", "train", "comparing the networks of a run")
    from edgeda.artifacts import find_run
    from edgeda.report.compare import compare_runs, compare_text
    from edgeda.report.compare_page import write_comparison
    from edgeda.report.pareto import budget_ms
    from edgeda.report.pruned import parse_cuts

    if train_pruned and not pruned:
        raise InputError("--train-pruned needs --pruned, the cuts to train")
    if html is not None:
        _check_page(html, "--html")
    limit = budget_ms(budget) if budget is not None else None
    cuts = parse_cuts(pruned) if pruned is not None else ()
    runs: list[str | None] = [*run] if run else [None]
    display = TrainingDisplay() if train_pruned else None
    try:
        result = compare_runs(
            [find_run(name) for name in runs], pruned=cuts, train=display, budget_ms=limit, seconds=seconds,
            threads=threads,
        )  # fmt: skip
    finally:
        if display:
            display.close()
    if html is not None:
        result["html"] = str(write_comparison(result, html))
    print_result(json_, result, lambda: compare_text(result, terminal_width()))


def report(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run directory, finished or not; default: the newest run.")
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="The file to write; default: RUN/report.html.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of measuring latency for each row.", min=0.01)] = 0.5,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """One self-contained HTML page on a run.

    The verdict, accuracy, what changed, what it costs.
    """
    require("torch", "train", "a report on a run")
    from edgeda.artifacts import find_run
    from edgeda.report.report import write_report

    if out_ is not None:
        _check_page(out_, "--out")
    result = write_report(find_run(run), out_, seconds=seconds, threads=threads)
    print_result(json_, result, lambda: f"{result['headline']}\nwrote {result['path']} ({result['size_mb']:.2f} MB)")


def _check_page(path: Path, option: str) -> None:
    """InputError, before anything is measured, for a place where no page can be put or something else may lie."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{option} {path}: give a file that ends in .html")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: no such folder, or a folder itself; give a file in a folder that exists")
    if path.exists():
        try:
            with path.open("rb") as file:
                ours = GENERATOR.encode() in file.read(1000)
        except OSError as error:
            raise from_os_error(error, f"reading the file of {option}") from error
        if not ours:
            raise InputError(f"{option} {path} is there already and no page of edgeda; choose another file")
    check_writable(path.absolute().parent, option)
