"""The commands that turn a run into a file for a device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeda.cli_options import Json, Threads
from edgeda.console import print_result
from edgeda.errors import InputError, did_you_mean, require

log = logging.getLogger(__name__)


def export(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run directory; default: the newest run."),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file with dynamic batch (the default).")] = False,
    role: Annotated[str, typer.Option(help="student, teacher or source_only.")] = "student",
    images: Annotated[
        str | None,
        typer.Option(help="Real images to check the file on; default: the run's own target images."),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder to write to; default: RUN/exports.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace even a file that is not this run's own export.")
    ] = False,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Export a run's network to ONNX and prove on real target images that it gives the same answers."""
    require("torch", "train", "exporting a run")
    from edgeda.artifacts import ROLES, find_run
    from edgeda.export import export_run
    from edgeda.export.images import parity_images
    from edgeda.report.summary import export_text

    if role not in ROLES:
        raise InputError(f"--role {role}{did_you_mean(role, ROLES)}")
    run = find_run(model)
    if role == "student" and (run.summary().get("verdict") or {}).get("ship") == "source-only":
        log.warning("the verdict is to ship the source-only student: edgeda export %s --role source_only", run.path)
    checked = parity_images(run, images, role)
    result = export_run(
        run, checked.squares, images_from=checked.origin, role=role, labels=checked.labels, out=out_,
        overwrite=overwrite, gmacs=checked.gmacs, threads=threads,
    )  # fmt: skip
    print_result(json_, result, lambda: export_text(result))
