"""Read an ONNX file's own metadata with the standard library: a device has neither onnx nor protobuf.

An ONNX file is one protobuf message, a flat sequence of fields, each a key (number and wire type) and
a payload. The weights are inside field 7 and are stepped over, so that reading takes microseconds.
"""

from __future__ import annotations

import io
import os
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from edgeda.errors import InputError, from_os_error

_IR_VERSION, _GRAPH, _METADATA_PROPS = 1, 7, 14
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MOST_FIELDS = 1_000_000
"""That a file may have; walking them takes seconds, those of a ResNet-50 three milliseconds."""


class _TooManyFields(ValueError):
    """A file made to be walked for ever."""


def read_metadata(path: Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file.

    Raises InputError for a file that is missing, a folder, empty, truncated, or no ONNX model, and for one whose
    weights lie outside its folder.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not an ONNX file")
        if not path.exists():
            raise InputError(f"no such model: {path}")
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path} is empty; export the model again")
        with path.open("rb") as stream:
            fields = list(_fields(stream, size, wanted=(_METADATA_PROPS,)))
            if not {_IR_VERSION, _GRAPH} <= {number for number, _ in fields}:
                raise ValueError
            stream.seek(0)
            for entry in _external_data(stream, size, "model", iter(range(_MOST_FIELDS))):
                _check_place(path, *_text_pair(entry))
            entries = [_text_pair(payload) for number, payload in fields if number == _METADATA_PROPS]
    except OSError as error:
        raise from_os_error(error, "reading the model") from error
    except _TooManyFields as error:
        raise InputError(f"{path} has more than {_MOST_FIELDS:,} fields; no model of images has") from error
    except (EOFError, ValueError) as error:
        raise InputError(f"{path} is truncated or not an ONNX model; export or copy it again") from error
    return dict(entries)


def _fields(stream: BinaryIO, end: int, wanted: Container[int]) -> Iterator[tuple[int, bytes]]:
    """Field numbers in order, with the payload of those wanted and `b""` for all others."""
    left = iter(range(_MOST_FIELDS))
    while stream.tell() < end:
        if next(left, None) is None:
            raise _TooManyFields
        key = _varint(stream)
        number, wire = key >> 3, key & 7
        if number == 0 or wire not in (_VARINT, _FIXED_64, _BYTES, _FIXED_32):
            raise ValueError(f"no protobuf key: {key}")
        if wire == _VARINT:
            _varint(stream)
            yield number, b""
            continue
        length = _varint(stream) if wire == _BYTES else {_FIXED_64: 8, _FIXED_32: 4}[wire]
        if stream.tell() + length > end:
            raise EOFError
        if number in wanted:
            yield number, stream.read(length)
        else:
            stream.seek(length, os.SEEK_CUR)
            yield number, b""


_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Of each kind of message, the fields that lead to tensors, and in these to the entries of `external_data`."""
_DEEPEST = 100
"""Messages within each other; protobuf itself reads no more."""


def _external_data(stream: BinaryIO, end: int, kind: str, left: Iterator[int], depth: int = 0) -> Iterator[bytes]:
    """Every entry of `external_data`, wherever a tensor may be; the stream is left at `end`.

    Each field, at whatever depth, takes one of `left`.
    """
    if depth > _DEEPEST:
        raise ValueError("messages nested too deeply")
    while stream.tell() < end:
        if next(left, None) is None:
            raise _TooManyFields
        key = _varint(stream)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _varint(stream)
            continue
        if wire not in (_FIXED_64, _BYTES, _FIXED_32):
            raise ValueError(f"no protobuf key: {key}")
        stop = (_varint(stream) if wire == _BYTES else {_FIXED_64: 8, _FIXED_32: 4}[wire]) + stream.tell()
        if stop > end:
            raise EOFError
        inside = _INSIDE[kind].get(number) if wire == _BYTES else None
        if inside == "entry":
            yield stream.read(stop - stream.tell())
        elif inside:
            yield from _external_data(stream, stop, inside, left, depth + 1)
        stream.seek(stop)


def _check_place(path: Path, key: str, place: str) -> None:
    """InputError for weights that are not in a regular file in the model's own folder or below it."""
    if key != "location":
        return
    folder, wanted = path.parent.resolve(), PurePosixPath(place.replace("\\", "/"))
    file = path.parent / wanted
    inside = not wanted.is_absolute() and ".." not in wanted.parts and "\0" not in place
    if not inside or not file.resolve().is_relative_to(folder) or (file.exists() and not file.is_file()):
        raise InputError(
            f"{path} keeps weights in {place[:200]!r}, which is no file of its own folder; a model may not read others"
        )


def _text_pair(entry: bytes) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto; UnicodeDecodeError is a ValueError."""
    parts = dict(_fields(io.BytesIO(entry), len(entry), wanted=(1, 2)))
    return parts.get(1, b"").decode("utf-8"), parts.get(2, b"").decode("utf-8")


def _varint(stream: BinaryIO) -> int:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a varint of more than ten bytes")
