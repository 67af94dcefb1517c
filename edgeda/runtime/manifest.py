"""The manifest: what an exported model must say of itself, inside the file and beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgeda.errors import InputError, one_line
from edgeda.runtime.preprocessing import Preprocessing
from edgeda.runtime.strict_json import parse_json

METADATA_KEY = "edgeda"
FORMAT = 1
FLOAT_NCHW, RAW_NHWC, RAW_NCHW = "float32 NCHW RGB", "uint8 NHWC RGB", "uint8 NCHW RGB"
LAYOUTS = (FLOAT_NCHW, RAW_NHWC, RAW_NCHW)
"""What a model takes: normalized float images, or raw pixels at the input size, normalized inside the graph."""
LOGITS, PROBABILITIES = "logits", "probabilities"
MOST_BATCH = 65536


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
            _check_kinds(kept)
            kept["classes"] = tuple(values["classes"])
            kept["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            smallest, largest = values["batch"]
            kept["batch"] = (int(smallest), None if largest is None else int(largest))
            if not 1 <= kept["batch"][0] <= (kept["batch"][1] or MOST_BATCH) <= MOST_BATCH:
                raise ValueError(f"batch {kept['batch']}")
            if kept.get("layout", FLOAT_NCHW) not in LAYOUTS or kept.get("output", LOGITS) not in (
                LOGITS,
                PROBABILITIES,
            ):
                raise ValueError(f"layout {kept.get('layout')!r}, output {kept.get('output')!r}")
            return cls(**kept)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the model's manifest cannot be read: {error!r:.200}") from error

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the embedded JSON."""
        try:
            values = parse_json(text)
        except ValueError as error:
            raise InputError(f"the model's manifest is not JSON: {one_line(error)}") from error
        return cls.from_dict(values)


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("architecture", "precision", "input_name", "output_name", "layout", "output"), (str,)),
    **dict.fromkeys(("consumer", "source_run", "sha256"), (str, type(None))),
    **dict.fromkeys(("gmacs", "params_m", "size_mb"), (int, float, type(None))),
    **dict.fromkeys(("drift", "parity", "accuracy", "quantization"), (dict, type(None))),
    "opset": (int, type(None)), "tools": (dict,), "classes": (list, tuple), "checks": (list, tuple, type(None)),
}  # fmt: skip


def _check_kinds(values: Mapping[str, Any]) -> None:
    """TypeError for a value of another kind than the manifest's own."""
    for name, kinds in _KINDS.items():
        value = values.get(name, kinds[0]())
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r:.60}")
    if not all(isinstance(name, str) for name in values["classes"]):
        raise TypeError("classes are texts")
    if not all(isinstance(row, dict) for row in values.get("checks") or ()):
        raise TypeError("checks are rows")
