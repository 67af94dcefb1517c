"""OpenVINO IR from an ONNX graph: fp32, fp16 weights, or int8 by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeda.errors import InputError, one_line, require


def write_openvino(
    content: bytes,
    path: Path,
    precision: str,
    calibration: Sequence[NDArray[Any]] | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write ONNX bytes without metadata as `path` (.xml) and the .bin beside it.

    `fp16` stores weights in half; what computes is chosen by the machine that runs it. `int8` needs `calibration`,
    batches as the graph takes them, and leaves the nodes `kept` in floating point. Raises MissingExtra, and InputError
    when OpenVINO or NNCF cannot convert the graph.
    """
    with _silence(), _no_telemetry():
        openvino = require("openvino", "openvino", "exporting to OpenVINO")
        try:
            model = openvino.convert_model(io.BytesIO(content))
            if precision == "int8":
                model = _quantized(model, calibration, kept)
            openvino.save_model(model, str(path), compress_to_fp16=precision == "fp16")
        except (RuntimeError, ValueError) as error:  # OpenVINO's own errors are RuntimeErrors, NNCF's ValueErrors
            raise InputError(f"OpenVINO cannot take the network in {precision}: {one_line(error)}") from error


def _quantized(model: Any, calibration: Sequence[NDArray[Any]] | None, kept: Collection[str]) -> Any:
    nncf = require("nncf", "quantize", "int8 for OpenVINO")
    if calibration is None:
        raise InputError("int8 needs calibration images")
    nncf.set_log_level(logging.CRITICAL)
    return nncf.quantize(
        model,
        nncf.Dataset(list(calibration)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=sorted(kept)) if kept else None,
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress bars, and no warnings of how these packages use each other."""
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """OpenVINO's converter and NNCF report their use to Intel unless they believe to be in a CI job: let them."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
