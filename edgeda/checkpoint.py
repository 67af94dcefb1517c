"""Checkpoints without pickle: one safetensors file, tensors by path and the rest as JSON in its metadata.

The one before the last is kept: it is loaded when the last has been damaged on the disk, as its checksum shows.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgeda.errors import InputError, one_line
from edgeda.memory import is_out_of_memory
from edgeda.whole_file import make_folder, sync, whole_file

log = logging.getLogger(__name__)

FILE, PREVIOUS = "state.safetensors", "previous.safetensors"
_TENSOR = "__tensor__"
_OF_THE_DISK = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
_passed_over: set[Path] = set()
"""Damaged files in whose stead this process has loaded the ones before them."""
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, JSON values and tensors; at any moment the last whole checkpoint can be loaded."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_strip(state, "", tensors))
    make_folder(folder)
    path, previous = folder / FILE, folder / PREVIOUS
    if path in _passed_over:  # the one before it is the last good one
        path.unlink(missing_ok=True)
    elif path.is_file():
        previous.unlink(missing_ok=True)  # first: never more than two on the disk
    with whole_file(path) as temporary:
        _write(temporary, tensors, {"tree": tree, "checksum": _checksum(tree, tensors)})
        sync(temporary)  # before the last one goes
        if path.is_file():
            os.replace(path, previous)
    _passed_over.discard(path)


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a whole file or none: until it is complete and on the disk, what was at `path` stays.

    Raises OSError when the disk is full or the folder is not ours.
    """
    with whole_file(path) as temporary:
        _write(temporary, tensors, metadata)


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """The file as safetensors lays it out, wide types first, under this very name.

    safetensors' own writer has a random one until it is done, which a killed process leaves behind.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=2**20) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes_of(tensors[name]))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The tree written last, or None when there is none yet.

    Where the last is damaged, the one before it, with which the next save of this process replaces it; InputError when
    that is, too. Changes nothing on the disk: several processes may read.
    """
    path, previous = folder / FILE, folder / PREVIOUS
    if not path.is_file():  # killed between two renames, or nothing was saved yet
        return _read(previous) if previous.is_file() else None
    try:
        return _read(path)
    except InputError as damaged:
        try:
            restored = _read(previous)
        except (InputError, FileNotFoundError):
            raise damaged from None
        log.warning("the checkpoint %s is damaged: going on from the one before it", path)
        _passed_over.add(path)
        return restored


def _read(path: Path) -> dict[str, Any]:
    with restoring(path):
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            # copies: what is mapped would hold the file, deleted or not, for as long as a tensor lives
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - it is no dict
        if metadata["checksum"] != _checksum(metadata["tree"], tensors):
            raise ValueError("its checksum is wrong")
        restored = _restore(json.loads(metadata["tree"]), tensors)
        if not isinstance(restored, dict):
            raise ValueError("its tree is no mapping")
        return restored


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """What a checkpoint that is damaged, or was never ours, makes of whoever reads it: InputError.

    What may pass, such as too little memory or too many open files, is no damage and stays what it was.
    """
    try:
        yield
    except (
        SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError,
    ) as error:  # fmt: skip
        passes = isinstance(error, OSError) and error.errno not in _OF_THE_DISK
        if passes or is_out_of_memory(error):
            raise
        raise InputError(
            f"the checkpoint {path} is damaged ({one_line(error)}); start again with --overwrite"
        ) from error


def _checksum(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the tree and of every tensor's name and bytes."""
    found = zlib.crc32(tree.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        found = zlib.crc32(name.encode("utf-8", "surrogatepass"), found)
        found = zlib.crc32(_bytes_of(tensors[name]), found)
    return f"{found:08x}"


def _strip(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{path}"  # numbered: keys may be 1 and "1", or hold a slash
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict):
        # keys of optimizer states are integers, which JSON objects cannot have
        return {"items": [[key, _strip(child, f"{path}/{key}", tensors)] for key, child in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_strip(child, f"{path}/{index}", tensors) for index, child in enumerate(value)]
    return value


def _restore(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _restore(child, tensors) for key, child in value["items"]}
    if isinstance(value, list):
        return [_restore(child, tensors) for child in value]
    return value
