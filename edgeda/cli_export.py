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
    threads: Threads = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Export a run's network, and prove on real target images what each file still gets right and how fast it is."""
    require("torch", "train", "exporting a run")
    from edgeda.artifacts import ROLES, find_run
    from edgeda.export import Options, export_run
    from edgeda.export.calibration import CALIBRATORS
    from edgeda.export.consumers import requests
    from edgeda.export.images import calibration_images, parity_images, teaching
    from edgeda.report.summary import export_text

    if role not in ROLES:
        raise InputError(f"--role {role}{did_you_mean(role, ROLES)}")
    if calibrator not in CALIBRATORS:
        raise InputError(f"--calibrator {calibrator}{did_you_mean(calibrator, CALIBRATORS)}")
    if not 0 <= max_drop <= 100:
        raise InputError(f"--max-drop {max_drop:g} is no number of points; give 0 to 100")
    wanted = requests(
        onnx=onnx, openvino=openvino, precisions=precision, consumers=consumer, batch=batch, raw=raw
    )  # fmt: skip
    int8 = any(request.precision == "int8" for request in wanted)
    if qat and not int8:
        raise InputError("--qat teaches an int8 student; add --precision int8")
    run = find_run(model)
    if role == "student" and (run.summary().get("verdict") or {}).get("ship") == "source-only":
        log.warning("the verdict is to ship the source-only student: edgeda export %s --role source_only", run.path)
    checked = parity_images(run, images, role)
    result = export_run(
        run, checked.squares, images_from=checked.origin, role=role, labels=checked.labels, out=out_,
        overwrite=overwrite, gmacs=checked.gmacs, threads=threads, wanted=wanted,
        calibration=calibration_images(run, calibration) if int8 else None,
        teaching=teaching(run, calibration, role, qat) if qat else None,
        options=Options(calibrator=calibrator, max_drop=max_drop),
    )  # fmt: skip
    print_result(json_, result, lambda: export_text(result))
