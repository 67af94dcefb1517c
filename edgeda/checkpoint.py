"""Checkpoints without pickle: one safetensors file, tensors by path and the rest as JSON in its metadata."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeda.errors import InputError, one_line

FILE = "state.safetensors"
_TENSOR = "__tensor__"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, JSON values and tensors; the previous checkpoint stays until it is replaced."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_strip(state, "", tensors))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / FILE, tensors, {"tree": tree})


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a whole file or none: until it is complete and on the disk, what was at `path` stays.

    Raises OSError when the disk is full or the folder is not ours.
    """
    temporary = path.with_name(f"{path.name}.part")
    try:
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(temporary)) from error
        raise
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _umask() -> int:
    """The process's file mode mask; safetensors writes files for the owner alone."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The tree written last, or None when there is none yet; InputError when the file is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    with restoring(folder), safe_open(path, framework="pt") as opened:
        restored = _restore(json.loads((opened.metadata() or {})["tree"]), opened)
        if not isinstance(restored, dict):
            raise ValueError("its tree is no mapping")
        return restored


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """What a checkpoint that is damaged, or was never ours, makes of whoever reads it: InputError."""
    try:
        yield
    except (
        SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError,
    ) as error:  # fmt: skip
        raise InputError(
            f"the checkpoint {folder / FILE} is damaged ({one_line(error)}); start again with --overwrite"
        ) from error


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


def _restore(value: Any, opened: Any) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return opened.get_tensor(value[_TENSOR])
        return {key: _restore(child, opened) for key, child in value["items"]}
    if isinstance(value, list):
        return [_restore(child, opened) for child in value]
    return value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
