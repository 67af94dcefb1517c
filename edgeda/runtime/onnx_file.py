"""Read an ONNX file's own metadata with the standard library: a device has neither onnx nor protobuf.

An ONNX file is one protobuf message, a flat sequence of fields, each a key (number and wire type) and
a payload. The weights are inside field 7 and are stepped over, so that reading takes microseconds.
"""

from __future__ import annotations

import io
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

from edgeda.errors import InputError, from_os_error

_IR_VERSION, _GRAPH, _METADATA_PROPS = 1, 7, 14
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def read_metadata(path: Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file.

    Raises InputError for a file that is missing, a folder, empty, truncated, or no ONNX model.
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
            entries = [_text_pair(payload) for number, payload in fields if number == _METADATA_PROPS]
    except OSError as error:
        raise from_os_error(error, "reading the model") from error
    except (EOFError, ValueError) as error:
        raise InputError(f"{path} is truncated or not an ONNX model; export or copy it again") from error
    return dict(entries)


def _fields(stream: BinaryIO, end: int, wanted: Container[int]) -> Iterator[tuple[int, bytes]]:
    """Field numbers in order, with the payload of those wanted and `b""` for all others."""
    while stream.tell() < end:
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
