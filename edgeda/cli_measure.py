"""The commands that judge a model: evaluate, profile."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeda.cli_options import Json, Model, Threads
from edgeda.console import print_result, terminal_width
from edgeda.errors import InputError


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


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--batch-size {text}: expected whole numbers with commas, such as 1,8") from None
