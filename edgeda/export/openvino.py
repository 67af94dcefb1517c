"""OpenVINO IR from an ONNX graph: fp32, fp16 weights, or int8 by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeda.errors import EdgedaError, InputError, one_line, require


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
    with _silence():
        openvino = require("openvino", "openvino", "exporting to OpenVINO")
        try:
            model = openvino.convert_model(io.BytesIO(content))
            if precision == "int8":
                model = _quantized(model, calibration, kept)
            openvino.save_model(model, str(path), compress_to_fp16=precision == "fp16")
        except EdgedaError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeErrors, NNCF what it likes
            raise InputError(f"OpenVINO cannot take the network in {precision}: {one_line(error)}") from error


def _quantized(model: Any, calibration: Sequence[NDArray[Any]] | None, kept: Collection[str]) -> Any:
    nncf = require("nncf", "quantize", "int8 for OpenVINO")
    if calibration is None:
        raise InputError("int8 needs calibration images")
    logging.getLogger("nncf").setLevel(logging.CRITICAL)  # its set_log_level also silences handlers of others
    there = {operation.get_friendly_name() for operation in model.get_ops()}
    # with a bias, the operation is NODE/WithoutBiases, and NODE the addition behind it
    ignored = sorted(f"{node}/WithoutBiases" if f"{node}/WithoutBiases" in there else node for node in kept)
    return nncf.quantize(
        model,
        nncf.Dataset(list(calibration)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress bars, and no warnings of how these packages use each other."""
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        warnings.simplefilter("ignore")
        yield
