"""The commands that turn a run into a file for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeda.cli_options import Json, Threads
from edgeda.console import print_result
from edgeda.errors import EdgedaError, InputError, did_you_mean, require


def export(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run directory; default: the newest run."),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file (the default).")] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Write an OpenVINO model (.xml and .bin).")] = False,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, int8, or several with commas; input and output stay fp32.")
    ] = "fp32",
    consumer: Annotated[
        str,
        typer.Option(
            "--for",
            help="What reads the ONNX: any, x86 (ONNX Runtime), openvino, trt, trt-8.6, jetpack-6.0, ...; caps the "
            "opset and chooses the kind of int8. Several with commas.",
        ),
    ] = "any",
    batch: Annotated[
        str | None, typer.Option(help="Batch range such as 1-16, or one fixed size such as 8; default: any.")
    ] = None,
    raw: Annotated[
        str | None,
        typer.Option(help="nhwc or nchw: uint8 frames at the input size in, probabilities out; steps inside."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Unlabelled target images that int8 is calibrated on; default: the run's own target."),
    ] = None,
    calibrator: Annotated[
        str, typer.Option(help="minmax, percentile or entropy: the range of an activation (int8 ONNX).")
    ] = "percentile",
    max_drop: Annotated[
        float,
        typer.Option(help="Points of accuracy, or of agreement with fp32 without labels, that an artifact may lose."),
    ] = 1.0,
    qat: Annotated[
        int,
        typer.Option(help="Epochs in which the run's teacher teaches the int8 student on unlabelled target images.",
                     min=0, max=1000),
    ] = 0,
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
    workspace_mb: Annotated[
        int | None, typer.Option(help="Most GPU memory, in MiB, for an engine's layers to work in.")
    ] = None,
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
) -> None:  # fmt: skip
    """Export a run's network; show what each file gets right.

    Every file is run on real target images, and timed, beside the network it was made from.

    With --trt or --trt-rtx, TensorRT engines are built from its ONNX files for TensorRT too.
    """
    require("torch", "train", "exporting a run")
    from edgeda.artifacts import ROLES, find_run
    from edgeda.export import Options, export_run
    from edgeda.export.calibration import CALIBRATORS
    from edgeda.export.consumers import CONSUMERS, parse_batch, requests
    from edgeda.export.images import calibration_images, parity_images, teaching
    from edgeda.export.tensorrt import EngineOptions, build_engines, check_request, engine_text
    from edgeda.report.summary import export_text, warn_against
    from edgeda.whole_file import check_writable

    engine_options = EngineOptions(
        workspace_mb=workspace_mb, timing_cache=timing_cache, dla_core=dla, version_compatible=version_compatible
    )
    check_request(engine_options, trt=trt, rtx=trt_rtx, device=device, batch=parse_batch(batch))
    if role not in ROLES:
        raise InputError(f"--role {role}{did_you_mean(role, ROLES)}")
    if calibrator not in CALIBRATORS:
        raise InputError(f"--calibrator {calibrator}{did_you_mean(calibrator, CALIBRATORS)}")
    if not 0 <= max_drop <= 100:
        raise InputError(f"--max-drop {max_drop:g} is no number of points; give 0 to 100")
    if trt or trt_rtx:
        onnx, consumer = True, "trt" if consumer == "any" else consumer
    wanted = requests(
        onnx=onnx, openvino=openvino, precisions=precision, consumers=consumer, batch=batch, raw=raw
    )  # fmt: skip
    if (trt or trt_rtx) and not any(CONSUMERS[request.consumer].scheme == "trt" for request in wanted):
        raise InputError(f"no ONNX for TensorRT comes of --for {consumer}; leave --for out, or add trt or a JetPack")
    int8 = any(request.precision == "int8" for request in wanted)
    if qat and not int8:
        raise InputError("--qat teaches an int8 student; add --precision int8")
    run = find_run(model)
    check_writable(out_ or run.exports, "--out")
    if role == "student":
        warn_against(run)
    checked = parity_images(run, images, role)
    result = export_run(
        run, checked.squares, images_from=checked.origin, role=role, labels=checked.labels, out=out_,
        overwrite=overwrite, gmacs=checked.gmacs, threads=threads, wanted=wanted,
        calibration=calibration_images(run, calibration) if int8 else None,
        teaching=teaching(run, calibration, role, qat) if qat else None,
        options=Options(calibrator=calibrator, max_drop=max_drop),
    )  # fmt: skip
    failures: list[EdgedaError] = []
    if trt or trt_rtx:
        result["engines"], failures = build_engines(
            result, engine_options, rtx=trt_rtx, device=device, overwrite=overwrite
        )
    print_result(json_, result, lambda: export_text(result) + engine_text(result))
    if failures:
        raise failures[0]
