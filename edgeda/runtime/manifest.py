"""The manifest: what an exported model must say of itself, inside the file and beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgeda.errors import InputError
from edgeda.runtime.preprocessing import Preprocessing

METADATA_KEY = "edgeda"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Everything needed to feed an exported classifier and to trust its answers.

    Embedded in the model file as JSON under `METADATA_KEY` (ONNX metadata_props) without what only
    exists once the file is written (`sha256`, `parity`, `size_mb`), and written whole as
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
    layout: str = "float32 NCHW RGB"
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
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        values["preprocessing"] = self.preprocessing.to_dict()
        return values

    def embedded(self) -> str:
        """The JSON that goes inside the model file: no hashes, no measurements, sorted keys."""
        outside = {"sha256", "size_mb", "parity", "accuracy"}
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
