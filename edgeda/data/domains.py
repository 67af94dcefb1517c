"""Domains: where images come from. A domain lists its items and reads one at a time."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeda.data.texts import Paths, Texts
from edgeda.runtime.preprocessing import open_image

Labels = NDArray[np.int64]


class Domain(ABC):
    """A sequence of images, labelled or not."""

    sequential = False
    """Items must be read in order by one reader."""

    def __init__(self, name: str, labels: Labels | None = None, classes: tuple[str, ...] | None = None) -> None:
        self.name = name
        self.labels = labels
        self.classes = classes
        self.ignored: list[str] = []
        """Files passed over because their names are no image's."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, index: int) -> str:
        """What to call an item in a message."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Decode an item; InputError when it cannot be."""

    def names(self, indices: NDArray[np.int64]) -> Texts:
        """What to call each of some items."""
        return Texts.of(map(self.item, indices.tolist()))

    def stamp(self, indices: NDArray[np.int64]) -> str | None:
        """Something that differs when the files behind some items do; None: they need no cache."""
        return None


class FileDomain(Domain):
    """Image files."""

    def __init__(
        self, name: str, paths: Sequence[Path], labels: Labels | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(name, labels, classes)
        self.paths = paths if isinstance(paths, Paths) else Paths.of(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, index: int) -> str:
        return self.paths.texts[index]

    def read(self, index: int) -> Image.Image:
        return open_image(self.paths[index])

    def names(self, indices: NDArray[np.int64]) -> Texts:
        return self.paths.texts.take(indices)

    def stamp(self, indices: NDArray[np.int64]) -> str | None:
        digest = hashlib.sha256()
        for text in self.names(indices):
            whole = text if text[0] == "/" else os.path.abspath(text)
            digest.update(f"{whole}\0{file_stamp(text)}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class ArrayDomain(Domain):
    """Images in memory, uint8 `(N, H, W)` or `(N, H, W, 3)`."""

    def __init__(self, name: str, images: NDArray[np.uint8], labels: Labels, classes: tuple[str, ...]) -> None:
        super().__init__(name, labels, classes)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


def file_stamp(path: str | Path) -> str:
    """Size and time of change of a file; `gone` when it cannot be found."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "gone"
    return f"{found.st_size} {found.st_mtime_ns}"
