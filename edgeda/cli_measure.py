"""The commands that judge a model: evaluate, profile."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeda.cli_options import Json, Model, Threads
from edgeda.console import print_result, terminal_width
from edgeda.errors import InputError, user_path


def evaluate(
    model: Model = None,
    data: Annotated[str, typer.Option(help="Labelled images: class folders, an image list, or a built-in name.")] = "",
    role: Annotated[str, typer.Option(help="Of a run directory: student, teacher or source_only.")] = "student",
    json_: Json = False,
) -> None:
    """Accuracy of a network or exported model on labelled images."""
    from edgeda.evaluate import evaluate as run_evaluate
    from edgeda.report.summary import evaluation_text

    result = run_evaluate(model, data, role)
    print_result(json_, result, lambda: evaluation_text(result))


def profile(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Run directories, .onnx or .engine files, OpenVINO folders or backbone names (r50).",
        ),
    ] = None,
    classes: Annotated[int, typer.Option(help="Of a backbone name: number of classes.", min=1)] = 1000,
    input_size: Annotated[int, typer.Option(help="Of a backbone name: side of the input in pixels.", min=1)] = 224,
    batch_size: Annotated[str, typer.Option(help="Batch sizes, such as 1,8 (8: MLPerf's MultiStream query).")] = "1",
    streams: Annotated[str, typer.Option(help="Numbers of calls at once that share the threads, such as 1,2.")] = "1",
    engine: Annotated[
        str | None,
        typer.Option(
            help="torch, onnxruntime (-cuda, -tensorrt), openvino, tensorrt, or several with commas; default: all."
        ),
    ] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="Seconds of measuring for each row.", min=0.01)] = 1.0,
    memory: Annotated[bool, typer.Option(help="Peak memory and load time, in a fresh process for each model.")] = True,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="From an image file to a class, stage by stage.")
    ] = False,
    image: Annotated[str | None, typer.Option(help="The image file for --end-to-end, which it implies.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Where the cost is, layer by layer.")] = False,
    power: Annotated[bool, typer.Option("--power", help="Power and energy an image, from a Jetson's sensors.")] = False,
    estimate: Annotated[
        str | None,
        typer.Option(
            help="Lower bounds for devices that are not here, such as orin-nano,orin-nx,agx-orin,thor: "
            "estimates, not measurements."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Measure there: local, or ssh://user@host[:port].")] = "local",
    remote_python: Annotated[str, typer.Option(help="Python 3.10 or later on that device.")] = "python3",
    timeout: Annotated[float, typer.Option(help="Seconds that measuring on that device may take.", min=1)] = 900.0,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also load time, memory by part, GFLOPs, MLPerf's figures, jitter.")
    ] = False,
    json_: Json = False,
) -> None:
    """GMACs, parameters, memory and latency in every engine.

    In each that is installed, here or on a device.
    """
    from edgeda.profiling import Extras
    from edgeda.profiling.session import profile as run_profile
    from edgeda.report.profiles import result_text

    extras = Extras(
        streams=tuple(_numbers("streams", streams)), memory=memory, end_to_end=end_to_end or image is not None,
        image=user_path(image) if image else None, power=power,
    )  # fmt: skip
    result = run_profile(
        [*model] if model else [None], classes=classes, input_size=input_size,
        batch_sizes=_numbers("batch-size", batch_size), engines=_names(engine), threads=threads, seconds=seconds,
        extras=extras, layers=layers, estimate_for=_names(estimate), device=None if device == "local" else device,
        remote_python=remote_python, timeout_s=timeout,
    )  # fmt: skip
    print_result(json_, result, lambda: result_text(result, terminal_width(), verbose))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{option} {text}: expected whole numbers with commas, such as 1,8") from None
