"""`edgeda datasets`: the benchmark data sets, what of them is here, and how they get where edgeda looks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeda.cli_options import Json
from edgeda.console import print_result, terminal_width
from edgeda.errors import InputError

datasets = typer.Typer(
    name="datasets",
    help="Benchmark data sets: list them, check them, put them in place.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Root = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Where the data sets lie; default: $EDGEDA_DATA, or ./data.")
]


@datasets.command("list")
def list_(root: Root = None, json_: Json = False) -> None:
    """Data sets known by name: where published, what is here."""
    from edgeda.data.benchmarks import data_root
    from edgeda.data.checks import listing
    from edgeda.report.datasets import listing_text

    folder = data_root(root)
    rows = listing(folder)
    result = {"root": str(folder), "data_sets": rows}
    print_result(json_, result, lambda: listing_text(rows, str(folder), terminal_width()))


@datasets.command()
def check(
    name: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Data sets; default: all that are here.")
    ] = None,
    root: Root = None,
    json_: Json = False,
) -> None:
    """Count images and classes; exit code 2 unless as published."""
    from edgeda.data.benchmarks import data_root
    from edgeda.data.checks import check as run_check

    folder = data_root(root)
    _show(run_check(name or [], folder), folder, json_)


@datasets.command()
def prepare(
    name: Annotated[str, typer.Argument(help="The data set, as `edgeda datasets list` names it.")],
    from_: Annotated[
        Path, typer.Option("--from", metavar="PATH", help="The archive (.zip, .tar, .tar.gz) or folder downloaded.")
    ],
    root: Root = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace domains that are there already.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Take it even if images or classes are missing.")] = False,
    json_: Json = False,
) -> None:
    """Put a download in place and check it; all or nothing."""
    from edgeda.data.benchmarks import data_root
    from edgeda.data.prepare import prepare as run_prepare
    from edgeda.errors import user_path

    folder = data_root(root)
    _show(run_prepare(name, user_path(str(from_)), folder, overwrite, partial), folder, json_, tolerant=partial)


def _show(parts: list[Any], folder: Path, as_json: bool, tolerant: bool = False) -> None:
    """Print the checks of domains; InputError names the first problem unless problems are tolerated."""
    from edgeda.report.datasets import check_text

    problems = [problem for part in parts for problem in part.problems]
    result = {"root": str(folder), "domains": [part.to_dict() for part in parts], "problems": problems}
    print_result(as_json, result, lambda: check_text(parts, terminal_width()))
    if problems and not tolerant:
        raise InputError(problems[0] + (f"; and {len(problems) - 1} more" if len(problems) > 1 else ""))
