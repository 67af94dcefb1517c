"""Many strings in one block of bytes: a list of a million paths in the memory of its file."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """Strings, UTF-8 or file names of any bytes, made when they are asked for. Equal to any sequence of the same."""

    def __init__(self, block: bytes, ends: NDArray[np.int64]) -> None:
        self._block, self._ends = block, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Pack strings, one at a time."""
        block, ends = bytearray(), array("q")
        for text in texts:
            block += os.fsencode(text)
            ends.append(len(block))
        return cls(bytes(block), np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return os.fsdecode(self._block[int(self._ends[index - 1]) if index else 0 : int(self._ends[index])])

    def take(self, indices: NDArray[np.int64]) -> Texts:
        """Some of them, in the order of `indices`."""
        whole = len(indices) == len(self) and bool((indices == np.arange(len(self))).all())
        return self if whole else Texts.of(self[index] for index in indices.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self._block)


class Paths(Sequence[Path]):
    """Paths over `Texts`: spelled as `Path` spells them."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    @classmethod
    def of(cls, paths: Iterable[str | Path]) -> Paths:
        """Pack paths, one at a time."""
        return cls(Texts.of(map(_spelled, paths)))

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> Path | Paths:
        return Paths(self.texts[index]) if isinstance(index, slice) else Path(self.texts[index])

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self.texts)


def printable(text: str) -> str:
    """Text whose undecodable bytes are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _spelled(path: str | Path) -> str:
    """`str(Path(path))`, without making one for the usual path: a million of them take seconds."""
    if (
        isinstance(path, str)
        and "//" not in path
        and "/." not in path
        and path[:1] not in (".", "")
        and path[-1] != "/"
    ):
        return path
    return str(Path(path))
