"""The commands that put results side by side: compare."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeda.cli_options import Json, Threads
from edgeda.console import print_result, terminal_width
from edgeda.errors import require


def compare(
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run directories; default: the newest run."),
    ] = None,
    threads: Threads = None,
    budget: Annotated[float, typer.Option(help="Seconds of measuring for each row.", min=0.01)] = 0.5,
    json_: Json = False,
) -> None:
    """Teacher, student and source-only student side by side: accuracy, GMACs, parameters, size, latency."""
    require("torch", "train", "comparing the networks of a run")
    from edgeda.artifacts import find_run
    from edgeda.report.compare import compare_run, compare_text

    runs: list[str | None] = [*run] if run else [None]
    results = [compare_run(found, budget_s=budget, threads=threads) for found in map(find_run, runs)]
    print_result(
        json_, {"runs": results}, lambda: "\n\n".join(compare_text(result, terminal_width()) for result in results)
    )
