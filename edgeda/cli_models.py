"""The commands for what training left: evaluate, export, profile, compare."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgeda.cli_options import Json, Model, Threads
from edgeda.console import print_result, terminal_width
from edgeda.errors import InputError, did_you_mean, require

log = logging.getLogger(__name__)


def evaluate(
    model: Model = None,
    data: Annotated[str, typer.Option(help="Labelled images: class folders, an image list, or a built-in name.")] = "",
    role: Annotated[str, typer.Option(help="Of a run directory: student, teacher or source_only.")] = "student",
    json_: Json = False,
) -> None:
    """Accuracy of a run's network or an exported model on labelled images."""
    from edgeda.evaluate import evaluate as run_evaluate
    from edgeda.report.summary import evaluation_text

    result = run_evaluate(model, data, role)
    print_result(json_, result, lambda: evaluation_text(result))


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


def profile(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Run directories, .onnx files, OpenVINO folders or backbone names (r50)."
        ),
    ] = None,
    classes: Annotated[int, typer.Option(help="Of a backbone name: number of classes.", min=1)] = 1000,
    input_size: Annotated[int, typer.Option(help="Of a backbone name: side of the input in pixels.", min=1)] = 224,
    batch_size: Annotated[str, typer.Option(help="Batch sizes, such as 1,8.")] = "1",
    engine: Annotated[
        str | None,
        typer.Option(help="torch, onnxruntime, openvino, or several with commas; default: all that are there."),
    ] = None,
    threads: Threads = None,
    budget: Annotated[float, typer.Option(help="Seconds of measuring for each row.", min=0.01)] = 1.0,
    json_: Json = False,
) -> None:
    """GMACs, parameters, file size and latency, in every engine that is installed."""
    from edgeda.profiling import profile_model
    from edgeda.profiling.machine import machine
    from edgeda.report.profiles import profile_text

    models: list[str | None] = [*model] if model else [None]
    rows = [
        row
        for name in models
        for row in profile_model(
            name, classes=classes, input_size=input_size, batch_sizes=_numbers(batch_size),
            engines=engine.split(",") if engine else None, threads=threads, budget_s=budget,
        )
    ]  # fmt: skip
    print_result(
        json_,
        {"rows": [row.to_dict() for row in rows], "machine": machine()},
        lambda: profile_text(rows, terminal_width()),
    )


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


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--batch-size {text}: expected whole numbers with commas, such as 1,8") from None
