"""Domains: where images come from. A domain lists its items and reads one at a time; nothing is decoded here."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeda.errors import InputError, did_you_mean, user_path
from edgeda.recipe import VideoRecipe
from edgeda.runtime.preprocessing import open_image

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2"]
)
VIDEO_SUFFIXES = frozenset([".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"])
LIST_SUFFIXES = frozenset({".txt", ".lst", ".csv"})
_LISTED = re.compile(r"(.*?\S)(?:\s*,\s*|\s+)([^\s,]+)")
"""A path, a comma, tab or spaces, and a word without any."""

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


class FileDomain(Domain):
    """Image files."""

    def __init__(
        self, name: str, paths: Sequence[Path], labels: Labels | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(name, labels, classes)
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> Image.Image:
        return open_image(self.paths[index])


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


def open_labelled(spec: str) -> Domain:
    """A domain with labels: class folders, an image list with labels, or a built-in name."""
    domain = _builtin(spec)
    if domain is None:
        path = _existing(spec)
        if path.is_dir():
            domain = class_folders(path)
        elif path.suffix.lower() in LIST_SUFFIXES:
            domain = image_list(path, labelled=True)
        else:
            raise InputError(f"{spec} cannot be labelled images; give a folder of class folders or an image list")
    if len(domain) == 0:
        raise InputError(f"no images in {spec}: expected {spec}/<class name>/<image>.jpg or .png")
    return domain


def open_unlabelled(spec: str, video: VideoRecipe) -> Domain:
    """A domain whose labels are never read: any folder, an image list, a video file, or a built-in name."""
    domain = _builtin(spec)
    if domain is None:
        path = _existing(spec)
        if path.is_dir():
            domain = any_folder(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            from edgeda.data.video import VideoDomain

            domain = VideoDomain(path, video)
        elif path.suffix.lower() in LIST_SUFFIXES:
            domain = image_list(path, labelled=False)
        else:
            raise InputError(f"{spec} is not a folder, an image list (.txt) or a video that edgeda knows")
    domain.labels = domain.classes = None
    if len(domain) == 0:
        raise InputError(f"no images in {spec}: the target needs unlabelled images (.jpg, .png, ...) at any depth")
    return domain


def class_folders(root: Path) -> FileDomain:
    """`root/<class>/**/<image>`; classes are the sorted names of the folders that hold images."""
    paths: list[Path] = []
    labels: list[int] = []
    names: list[str] = []
    ignored: list[str] = []
    for folder in sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")):
        found = list(_images_below(folder, ignored))
        if found:
            labels += [len(names)] * len(found)
            names.append(_printable(folder.name))
            paths += found
    loose = [
        child
        for child in root.iterdir()
        if child.is_file() and child.suffix.lower() in IMAGE_SUFFIXES and not child.name.startswith(".")
    ]
    if not paths and loose:
        raise InputError(f"{root} has {len(loose)} images but no class folders; expected {root}/<class name>/<image>")
    domain = FileDomain(root.name, paths, np.asarray(labels, np.int64), tuple(names))
    domain.ignored = ignored + [f"{path} (outside the class folders)" for path in sorted(loose)]
    return domain


def any_folder(root: Path) -> FileDomain:
    """Every image below `root`."""
    ignored: list[str] = []
    domain = FileDomain(root.name, list(_images_below(root, ignored)))
    domain.ignored = ignored
    return domain


def image_list(path: Path, labelled: bool) -> FileDomain:
    """A text file with `path label` a line, paths relative to the list; labels are names or numbers."""
    paths: list[Path] = []
    words: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"image list {path} cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        parts = _LISTED.fullmatch(text)
        head, last = parts.groups() if parts else ("", text)
        has_label = bool(head) and Path(last).suffix.lower() not in IMAGE_SUFFIXES
        if labelled and not has_label:
            raise InputError(f"{path}, line {number}: expected 'path label', found '{text[:80]}'")
        paths.append(path.parent / (head if has_label else text))
        words.append(last if has_label else "")
    if not labelled:
        return FileDomain(path.stem, paths)
    numeric = all(re.fullmatch(r"-?[0-9]{1,9}", word) for word in words)
    names = sorted(set(words), key=int) if numeric else sorted(set(words))
    index = {name: position for position, name in enumerate(names)}
    return FileDomain(path.stem, paths, np.asarray([index[word] for word in words], np.int64), tuple(names))


def _builtin(spec: str) -> Domain | None:
    from edgeda.data.builtin import BUILTIN

    name, _, argument = spec.removeprefix("builtin:").partition(":")
    if name not in BUILTIN or (not spec.startswith("builtin:") and Path(spec).exists()):
        if spec.startswith("builtin:"):
            raise InputError(f"no built-in domain '{name}'{did_you_mean(name, BUILTIN)}")
        return None
    return BUILTIN[name](argument)


def _existing(spec: str) -> Path:
    path = user_path(spec)
    if not path.exists():
        from edgeda.data.builtin import BUILTIN

        hint = did_you_mean(spec, BUILTIN).split("; known")[0]
        raise InputError(f"no such folder or file: {spec}{hint}")
    return path


def _images_below(folder: Path, ignored: list[str]) -> Iterator[Path]:
    """Image files below a folder in sorted order; links are followed, each real folder once, never upwards."""
    seen: set[str] = set()
    top = Path(os.path.realpath(folder))

    def unreadable(error: OSError) -> None:
        ignored.append(f"{_printable(str(error.filename))} (cannot be opened: {error.strerror})")

    for at, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(at)
        # a link from a class folder to one above it would bring in the other classes' images
        upwards = at != str(folder) and top.is_relative_to(real)
        if real in seen or upwards:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(at, name)
            else:
                ignored.append(f"{_printable(os.path.join(at, name))} (not an image by its name)")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
