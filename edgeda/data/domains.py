"""Domains: where images come from. A domain lists its items and reads one at a time; nothing is decoded here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeda.data.texts import Paths, Texts, printable
from edgeda.errors import InputError, did_you_mean, from_os_error, user_path
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


def open_labelled(spec: str) -> Domain:
    """A domain with labels: class folders, an image list with labels, or a built-in name."""
    with _blamed_on(spec):
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
        raise InputError(f"no images in {spec}: expected {spec}/<class name>/<image>.jpg or .png{_first(domain)}")
    return domain


def open_unlabelled(spec: str, video: VideoRecipe) -> Domain:
    """A domain whose labels are never read: any folder, an image list, a video file, or a built-in name."""
    with _blamed_on(spec):
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
        raise InputError(
            f"no images in {spec}: the target needs unlabelled images (.jpg, .png, ...) at any depth{_first(domain)}"
        )
    return domain


@contextlib.contextmanager
def _blamed_on(spec: str) -> Iterator[None]:
    """What the disk says while images are looked for is said of where they are looked for."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"reading {spec}") from error


def _first(domain: Domain) -> str:
    return f"; passed over: {domain.ignored[0]}" if domain.ignored else ""


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
        parts = _LISTED.fullmatch(text)
        head, last = parts.groups() if parts else ("", text)
    else:  # the same, faster
        head, last = words if len(words := text.rsplit(None, 1)) == 2 else ("", text)
    if head and os.path.splitext(last)[1].lower() not in IMAGE_SUFFIXES:
        return head, last
    return text, None


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
