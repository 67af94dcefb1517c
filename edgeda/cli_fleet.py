"""The command that adapts many cameras at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeda.cli_options import Json
from edgeda.console import print_result, terminal_width
from edgeda.errors import InputError, require


def fleet(
    file: Annotated[
        str | None, typer.Argument(metavar="[FLEET.yaml]", help="Source, recipe and cameras; see docs/fleet.md.")
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; default: runs/fleet-<name of the fleet>.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="CPUs of this machine to use; default: all.", min=1)] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster that sees the same folders, such as 10.0.0.5:6379, or auto.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Where progress is kept: a folder or URL; default: OUT/state.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Run nothing: say what is known from the state.")] = False,
    check_drift: Annotated[
        bool,
        typer.Option("--check-drift", help="Also hold finished cameras against what their models were adapted to."),
    ] = False,
    json_: Json = False,
) -> None:
    """Adapt one source to many cameras at once, on Ray.

    What cameras have in common is computed once.

    Finished cameras are kept and stopped ones go on, so the same command may be given again. `--status` reads the
    state alone: with --state or --out it needs no FLEET.yaml.
    """
    from edgeda.benchmark_recipe import folder_name
    from edgeda.fleet.recipe import load_fleet
    from edgeda.fleet.report import failed_line, fleet_text
    from edgeda.fleet.state import default_place

    recipe = load_fleet(file) if file is not None else None
    if recipe is not None and out_ is None:
        out_ = Path("runs") / f"fleet-{folder_name(recipe.name)}"
    if workers is not None and address is not None:
        raise InputError("--workers is for a Ray on this machine; leave it out with --address")
    if recipe is None and not (status and (state or out_)):
        raise InputError("FLEET.yaml is missing; it names the source and the cameras (--status needs --state or --out)")
    from edgeda.fleet import fleet as run_fleet
    from edgeda.fleet import fleet_status

    if status or recipe is None or out_ is None:
        result = fleet_status(state or default_place(out_ or Path()))
    else:
        require("torch", "train", "a fleet")
        result = run_fleet(recipe, out_, state=state, workers=workers, address=address, check_drift=check_drift)
    print_result(json_, result, lambda: fleet_text(result, terminal_width()))
    if result["counts"].get("failed"):
        raise InputError(failed_line(result))
