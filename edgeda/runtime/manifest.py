"""The manifest: what an exported model must say of itself, inside the file and beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgeda.errors import InputError
from edgeda.runtime.preprocessing import Preprocessing

METADATA_KEY = "edgeda"
FORMAT = 1
FLOAT_NCHW, RAW_NHWC, RAW_NCHW = "float32 NCHW RGB", "uint8 NHWC RGB", "uint8 NCHW RGB"
LAYOUTS = (FLOAT_NCHW, RAW_NHWC, RAW_NCHW)
"""What a model takes: normalized float images, or raw pixels at the input size, normalized inside the graph."""
LOGITS, PROBABILITIES = "logits", "probabilities"


@dataclass(frozen=True)
class Manifest:
    """Everything needed to feed an exported classifier and to trust its answers.

    Embedded in the model file as JSON under `METADATA_KEY` (ONNX metadata_props) without what only
    exists once the file is written (`sha256`, `size_mb` and what was measured), and written whole as
    `manifest.json` beside it.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: str
    precision: str
    batch: tuple[int, int | None]
    """Smallest and largest batch; None: no upper limit."""
    input_name: str = "images"
    output_name: str = "logits"
    layout: str = FLOAT_NCHW
    """One of LAYOUTS: type, order and channels of the input."""
    output: str = LOGITS
    """What the output holds: `logits`, or `probabilities` where the softmax is inside the graph."""
    consumer: str | None = None
    """What the file was made for (`trt`, `x86`, ...); None: anything that reads its format."""
    opset: int | None = None
    source_run: str | None = None
    gmacs: float | None = None
    params_m: float | None = None
    drift: Mapping[str, Any] | None = None
    """Statistics of target images and of what the model says of them (`edgeda.runtime.drift`)."""
    tools: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    size_mb: float | None = None
    parity: Mapping[str, Any] | None = None
    accuracy: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    """Of an int8 model: scheme, calibration, layers kept in higher precision, and what that costs in points."""
    checks: Sequence[Mapping[str, Any]] | None = None
    """The table of the export that wrote this file: a row for each of its artifacts, this one's included."""
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        values["preprocessing"] = self.preprocessing.to_dict()
        return values

    def embedded(self) -> str:
        """The JSON that goes inside the model file: no hashes, no measurements, sorted keys."""
        outside = {"sha256", "size_mb", "parity", "accuracy", "quantization", "checks"}
        values = {key: value for key, value in self.to_dict().items() if key not in outside}
        return json.dumps(values, sort_keys=True, ensure_ascii=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_dict`; keys of a later version are ignored, a later format refused."""
        if not isinstance(values, Mapping):
            raise InputError("the model's manifest is not a JSON object")
        version = values.get("format")
        if not isinstance(version, int) or version > FORMAT:
            raise InputError(f"the model's manifest has format {version!r}; this edgeda reads up to {FORMAT}")
        known = {f.name for f in fields(cls)}
        try:
            kept = {key: value for key, value in values.items() if key in known}
            kept["classes"] = tuple(str(name) for name in values["classes"])
            kept["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            smallest, largest = values["batch"]
            kept["batch"] = (int(smallest), None if largest is None else int(largest))
            if not all(isinstance(kept.get(name, ""), str) for name in ("input_name", "output_name", "precision")):
                raise TypeError("input_name, output_name and precision are texts")
            if kept.get("layout", FLOAT_NCHW) not in LAYOUTS or kept.get("output", LOGITS) not in (
                LOGITS,
                PROBABILITIES,
            ):
                raise ValueError(f"layout {kept.get('layout')!r}, output {kept.get('output')!r}")
            return cls(**kept)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the model's manifest cannot be read: {error!r}") from error

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the embedded JSON."""
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"the model's manifest is not JSON: {error}") from error
