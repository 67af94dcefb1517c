"""Checkpoints without pickle: one safetensors file, tensors by path and the rest as JSON in its metadata.

The one before the last is kept: it is loaded when the last has been damaged on the disk, as its checksum shows.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeda.errors import InputError, one_line
from edgeda.whole_file import sync, whole_file

log = logging.getLogger(__name__)

FILE, PREVIOUS = "state.safetensors", "previous.safetensors"
_TENSOR = "__tensor__"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, JSON values and tensors; at any moment the last whole checkpoint can be loaded."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_strip(state, "", tensors))
    folder.mkdir(parents=True, exist_ok=True)
    path, previous = folder / FILE, folder / PREVIOUS
    if path.is_file():
        previous.unlink(missing_ok=True)  # first: never more than two on the disk
    with whole_file(path) as temporary:
        _write(temporary, tensors, {"tree": tree, "checksum": _checksum(tree, tensors)})
        sync(temporary)  # before the last one goes
        if path.is_file():
            os.replace(path, previous)


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a whole file or none: until it is complete and on the disk, what was at `path` stays.

    Raises OSError when the disk is full or the folder is not ours.
    """
    with whole_file(path) as temporary:
        _write(temporary, tensors, metadata)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(0o666 & ~_umask())
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def _umask() -> int:
    """The process's file mode mask; safetensors writes files for the owner alone."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The tree written last, or None when there is none yet.

    Where the last is damaged, the one before it, which then takes its place; InputError when that is, too.
    """
    path, previous = folder / FILE, folder / PREVIOUS
    if not path.is_file():  # killed between two renames, or nothing was saved yet
        return _read(previous) if previous.is_file() else None
    try:
        return _read(path)
    except InputError as damaged:
        try:
            restored = _read(previous)
        except InputError:
            raise damaged from None
        log.warning("the checkpoint %s is damaged: going on from the one before it", path)
        os.replace(previous, path)
        return restored


def _read(path: Path) -> dict[str, Any]:
    with restoring(path):
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
        if metadata["checksum"] != _checksum(metadata["tree"], tensors):
            raise ValueError("its checksum is wrong")
        restored = _restore(json.loads(metadata["tree"]), tensors)
        if not isinstance(restored, dict):
            raise ValueError("its tree is no mapping")
        return restored


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """What a checkpoint that is damaged, or was never ours, makes of whoever reads it: InputError."""
    try:
        yield
    except (
        SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError,
    ) as error:  # fmt: skip
        raise InputError(
            f"the checkpoint {path} is damaged ({one_line(error)}); start again with --overwrite"
        ) from error


def _checksum(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the tree and of every tensor's name and bytes."""
    found = zlib.crc32(tree.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        found = zlib.crc32(name.encode("utf-8", "surrogatepass"), found)
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
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
