"""Image files in folders and lists, as domains; nothing is decoded here."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeda.data.domains import FileDomain
from edgeda.data.texts import Paths, printable
from edgeda.errors import InputError

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2"]
)
VIDEO_SUFFIXES = frozenset([".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"])
LIST_SUFFIXES = frozenset({".txt", ".lst", ".csv"})
_LISTED = re.compile(r"(.*?\S)(?:\s*,\s*|\s+)([^\s,]+)")
"""A path, a comma, tab or spaces, and a word without any."""


def class_folders(root: Path) -> FileDomain:
    """`root/<class>/**/<image>`; classes are the sorted names of the folders that hold images."""
    paths: list[str] = []
    labels: list[int] = []
    names: list[str] = []
    ignored: list[str] = []
    for folder in sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")):
        try:
            os.scandir(folder).close()
        except OSError as error:
            reason = f"cannot be opened ({error.strerror}), and its class would be missing"
            raise InputError(f"{folder} {reason}; make it readable, or move it away") from error
        found = list(_images_below(folder, ignored))
        if found:
            labels += [len(names)] * len(found)
            names.append(printable(folder.name))
            paths += found
    loose = [
        child
        for child in root.iterdir()
        if child.is_file() and child.suffix.lower() in IMAGE_SUFFIXES and not child.name.startswith(".")
    ]
    if not paths and loose:
        raise InputError(f"{root} has {len(loose)} images but no class folders; expected {root}/<class name>/<image>")
    domain = FileDomain(root.name, Paths.of(paths), np.asarray(labels, np.int64), tuple(names))
    domain.ignored = ignored + [f"{path} (outside the class folders)" for path in sorted(loose)]
    return domain


def any_folder(root: Path) -> FileDomain:
    """Every image below `root`."""
    ignored: list[str] = []
    domain = FileDomain(root.name, Paths.of(_images_below(root, ignored)))
    domain.ignored = ignored
    return domain


def image_list(path: Path, labelled: bool) -> FileDomain:
    """A text file with `path label` a line, paths relative to the list; labels are names or numbers."""
    words: dict[str, int] = {}
    numbers = array("q")
    """Of each line's label, which of `words` it is."""

    def lines() -> Iterator[str]:
        folder = str(path.parent)
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                listed, word = _split(text)
                if labelled and word is None:
                    raise InputError(f"{path}, line {number}: expected 'path label', found '{text[:80]}'")
                numbers.append(words.setdefault(word or "", len(words)))
                yield os.path.join(folder, listed)

    try:
        paths = Paths.of(lines())
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"image list {path} cannot be read as UTF-8 text: {error}") from error
    if not labelled:
        return FileDomain(path.stem, paths)
    numeric = all(re.fullmatch(r"-?[0-9]{1,9}", word) for word in words)
    names = sorted(words, key=int) if numeric else sorted(words)
    position = {name: index for index, name in enumerate(names)}
    renumbered = np.asarray([position[word] for word in words], np.int64)
    return FileDomain(path.stem, paths, renumbered[np.asarray(numbers, np.int64)], tuple(names))


def _split(text: str) -> tuple[str, str | None]:
    """The path and the label of a line of an image list; None when it has a path only."""
    if "," in text:
        path, _, label = (part.strip() for part in text.rpartition(","))
        if label and _is_image(path) and not _is_image(label):  # labels may have spaces in them
            return path, label
        parts = _LISTED.fullmatch(text)
        head, last = parts.groups() if parts else ("", text)
    else:  # the same, faster
        head, last = words if len(words := text.rsplit(None, 1)) == 2 else ("", text)
    if head and not _is_image(last):
        return head, last
    return text, None


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _images_below(folder: Path, ignored: list[str]) -> Iterator[str]:
    """Image files below a folder in sorted order; links are followed, each real folder once, never upwards."""
    seen: set[str] = set()
    top = Path(os.path.realpath(folder))

    def unreadable(error: OSError) -> None:
        ignored.append(f"{printable(str(error.filename))} (cannot be opened: {error.strerror})")

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
                yield os.path.join(at, name)
            else:
                ignored.append(f"{printable(os.path.join(at, name))} (not an image by its name)")
