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
    trt: Annotated[
        bool,
        typer.Option(
            "--trt",
            help="Also build a TensorRT engine with this machine's GPU; without one (exit code 3), "
            "what builds it on the device is written beside the ONNX file.",
        ),
    ] = False,
    trt_rtx: Annotated[
        bool, typer.Option("--trt-rtx", help="Also build an engine for desktop RTX GPUs, here, with or without one.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Build the --trt engine there: ssh://user@host[:port], with keys.")
    ] = None,
    workspace_mb: Annotated[int | None, typer.Option(help="Most GPU memory for an engine's layers to work in.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of TensorRT's measurements, which makes the next build faster.")
    ] = None,
    dla: Annotated[
        int | None, typer.Option(help="Run on this DLA core of a Jetson, and on the GPU what it cannot.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="An engine that later TensorRT versions of its major take too.")
    ] = False,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Export a run's network to ONNX and prove on real target images that it gives the same answers.

    With --trt or --trt-rtx, a TensorRT engine is built from that file too.
    """
    require("torch", "train", "exporting a run")
    from edgeda.artifacts import ROLES, find_run
    from edgeda.export import export_run
    from edgeda.export.images import parity_images
    from edgeda.export.tensorrt import EngineOptions, check_request, engine_text, export_engine
    from edgeda.report.summary import export_text

    engine_options = EngineOptions(
        workspace_mb=workspace_mb, timing_cache=timing_cache, dla_core=dla, version_compatible=version_compatible
    )
    check_request(engine_options, trt=trt, rtx=trt_rtx, device=device)
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
    if trt or trt_rtx:
        result["engine"] = export_engine(
            Path(result["path"]), engine_options, rtx=trt_rtx, device=device, overwrite=overwrite
        )
    print_result(json_, result, lambda: export_text(result) + engine_text(result))
