"""Who reads the exported file: the one table of what each consumer takes, and what a user asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgeda.errors import InputError, did_you_mean

PRECISIONS = ("fp32", "fp16", "int8")
MOST_IMAGES = 1024
"""The largest batch that a range may name."""


@dataclass(frozen=True)
class Consumer:
    """What reads an ONNX file: its highest opset, the precisions it gains from, and its int8 scheme."""

    name: str
    opset: int
    precisions: tuple[str, ...]
    scheme: str | None = None
    """`trt` or `x86`, see `edgeda.export.qdq`; None: no int8 ONNX for it."""


_TENSORRT = ("fp32", "fp16", "int8")
CONSUMERS = {
    consumer.name: consumer
    for consumer in (
        Consumer("any", 20, ("fp32", "fp16")),
        Consumer("x86", 20, ("fp32", "int8"), "x86"),
        Consumer("openvino", 20, ("fp32", "fp16")),
        Consumer("trt", 20, _TENSORRT, "trt"),
        Consumer("trt-8.5", 17, _TENSORRT, "trt"),
        Consumer("trt-8.6", 17, _TENSORRT, "trt"),
        Consumer("trt-10", 20, _TENSORRT, "trt"),
        Consumer("trt-11", 20, _TENSORRT, "trt"),
        Consumer("jetpack-5.1", 17, _TENSORRT, "trt"),
        Consumer("jetpack-6.0", 17, _TENSORRT, "trt"),
        Consumer("jetpack-6.1", 20, _TENSORRT, "trt"),
        Consumer("jetpack-6.2", 20, _TENSORRT, "trt"),
        Consumer("jetpack-7.1", 20, _TENSORRT, "trt"),
        Consumer("jetpack-7.2", 20, _TENSORRT, "trt"),
    )
}
"""TensorRT 8.5 (JetPack 5.1) and 8.6 (6.0) read up to opset 17; 10.3 (6.1, 6.2), 10.13 (7.1), 10.16 (7.2) and 11 more
than the 20 that torch writes. ONNX Runtime runs fp16 on x86 only by casting back; it reads any opset up to 20 from
version 1.17 on."""

RAW = {"nhwc": "uint8 NHWC RGB", "nchw": "uint8 NCHW RGB"}


@dataclass(frozen=True)
class Request:
    """One artifact to make. `raw` is `nhwc` or `nchw` for uint8 frames in and probabilities out, else None."""

    format: str = "onnx"
    precision: str = "fp32"
    consumer: str = "any"
    batch: tuple[int, int | None] = (1, None)
    raw: str | None = None

    @property
    def label(self) -> str:
        """Its folder under the exports: empty for the plain fp32 ONNX of any batch."""
        if self == Request():
            return ""
        parts = [self.format, self.precision]
        if self.format == "onnx" and self.consumer != "any":
            parts.append(self.consumer)
        if self.raw:
            parts.append(f"raw-{self.raw}")
        low, high = self.batch
        if self.batch != (1, None):
            parts.append(f"b{low}" if low == high else f"b{low}-{high}")
        return "-".join(parts)

    @property
    def name(self) -> str:
        """What a table calls it."""
        return self.label or "onnx-fp32"

    @property
    def opset(self) -> int:
        """The highest opset of its ONNX graph."""
        return CONSUMERS[self.consumer].opset

    @property
    def scheme(self) -> str | None:
        """The int8 scheme of an int8 ONNX; None for any other."""
        return CONSUMERS[self.consumer].scheme if (self.format, self.precision) == ("onnx", "int8") else None


def requests(
    *,
    onnx: bool = False,
    openvino: bool = False,
    precisions: str = "fp32",
    consumers: str = "any",
    batch: str | None = None,
    raw: str | None = None,
) -> list[Request]:
    """Every artifact asked for, formats times consumers times precisions; comma-separated words, `batch` as `1-16`.

    ONNX is meant when no format is named. InputError for a word nobody knows, and for a precision that a
    format or a consumer does not have: what it has is listed.
    """
    wanted_precisions = _words("--precision", precisions, PRECISIONS)
    wanted_consumers = _words("--for", consumers, CONSUMERS)
    if raw is not None and raw not in RAW:
        raise InputError(f"--raw {raw}{did_you_mean(raw, RAW)}")
    batches = parse_batch(batch)
    found = []
    if onnx or not openvino:
        for consumer in wanted_consumers:
            for precision in wanted_precisions:
                _check_onnx(consumer, precision)
                found.append(Request("onnx", precision, consumer, batches, raw))
    if openvino:
        found += [Request("openvino", precision, "openvino", batches, raw) for precision in wanted_precisions]
    return found


def parse_batch(text: str | None) -> tuple[int, int | None]:
    """`1-16` as (1, 16), `8` as (8, 8), None as any batch; InputError for a range that no profile can hold."""
    if text is None:
        return (1, None)
    found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= MOST_IMAGES:
        raise InputError(
            f"--batch {text} is no batch range: write a smallest and a largest batch within 1 to {MOST_IMAGES}, "
            "such as 1-16, or one fixed size, such as 8"
        )
    return low, high


def _check_onnx(consumer: str, precision: str) -> None:
    has = CONSUMERS[consumer].precisions
    if precision in has:
        return
    if precision == "int8" and consumer == "any":
        ways = ", ".join(name for name, known in CONSUMERS.items() if known.scheme)
        raise InputError(
            f"no int8 ONNX suits every consumer; name one with --for ({ways}), or use --openvino for OpenVINO"
        )
    more = "; for int8 use --openvino" if (consumer, precision) == ("openvino", "int8") else ""
    raise InputError(f"ONNX for {consumer} has no {precision}; it has {', '.join(has)}{more}")


def _words(option: str, text: str, known: Sequence[str] | dict[str, Consumer]) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in known:
            raise InputError(f"{option} {word or 'is empty'}{did_you_mean(word, known)}")
    return words
