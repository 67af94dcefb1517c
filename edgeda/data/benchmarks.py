"""Benchmark data sets on this machine: find and open their domains.

A domain is named `office31:amazon` and looked for below $EDGEDA_DATA (./data by default). Nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeda.data.catalogue import BENCHMARKS, Benchmark, Part, plain
from edgeda.data.digit_files import read_digits
from edgeda.data.domains import ArrayDomain, Domain, FileDomain
from edgeda.data.image_files import class_folders, image_list
from edgeda.data.texts import Paths
from edgeda.errors import InputError, did_you_mean, user_path

log = logging.getLogger(__name__)

ROOT_VARIABLE = "EDGEDA_DATA"
_DIGIT_FOLDERS = (".", "raw", "MNIST/raw")
_LIST_STEMS = ("{}list", "{}")


def data_root(root: str | None = None) -> Path:
    """The folder that holds the data sets: `root`, $EDGEDA_DATA, or ./data."""
    return user_path(root or os.environ.get(ROOT_VARIABLE) or "data")


def find_benchmark(name: str) -> Benchmark:
    """A data set by name; InputError with the nearest name."""
    if name not in BENCHMARKS:
        raise InputError(f"no such data set: {name}{did_you_mean(name, BENCHMARKS)}")
    return BENCHMARKS[name]


def find_part(benchmark: Benchmark, name: str) -> Part:
    """A domain by name or alias; InputError names those that there are."""
    for part in benchmark.parts:
        if plain(name) in part.names:
            return part
    specs = ", ".join(f"{benchmark.name}:{part.name}" for part in benchmark.parts)
    if not name:
        raise InputError(f"{benchmark.name} needs a domain: {specs}")
    raise InputError(f"{benchmark.title} has no domain '{name}'; there are {specs}")


def open_benchmark(name: str, domain: str) -> Domain:
    """`name:domain`, from the folder of all data sets; a count other than the published one is a warning."""
    benchmark = find_benchmark(name)
    return open_in(benchmark, find_part(benchmark, domain), data_root() / benchmark.folder)


def open_in(benchmark: Benchmark, part: Part, base: Path) -> Domain:
    """The same from the folder `base` of the data set; InputError when it is not there."""
    domain = read_part(benchmark, part, base)
    if domain is None:
        raise InputError(missing(benchmark, part, base))
    if len(domain) != part.images:
        _say_once(
            f"{benchmark.name}:{part.name} has {len(domain)} images, {part.images} are published "
            f"(a subset may be used); `edgeda datasets check {benchmark.name}` says more"
        )
    return domain


def missing(benchmark: Benchmark, part: Part, base: Path) -> str:
    """What is not there, where it is published, and how it should lie: one line."""
    wanted = " or ".join(formats[0] for formats in part.files) or f"{part.name} with images of its classes"
    return (
        f"{benchmark.name}:{part.name} is not there: no {wanted} in {base}; {benchmark.title} is not downloaded by "
        f"edgeda but published: {benchmark.published}; expected below the data folder ({ROOT_VARIABLE}, or ./data): "
        f"{benchmark.layout}; see `edgeda datasets list`"
    )


def locate(benchmark: Benchmark, part: Part, base: Path) -> tuple[Path, ...]:
    """Where a domain lies in `base`: its files, its folder of class folders, or list file and folder; () if nowhere."""
    if benchmark.of_files:
        for folder in (base / below for below in _DIGIT_FOLDERS):
            for names in part.files:
                if all((folder / name).is_file() for name in names):
                    return tuple(folder / name for name in names)
        return ()
    for folder in (child for child in _children(base) if child.is_dir() and plain(child.name) in part.names):
        if benchmark.listed:
            listed = _list_file(part, base)
            if listed is not None:
                return listed, folder
        known = set(map(plain, benchmark.classes))
        for at in (folder / "images", folder):
            if any(plain(child.name) in known and child.is_dir() for child in _children(at)):
                return (at,)
    return ()


def read_part(benchmark: Benchmark, part: Part, base: Path) -> Domain | None:
    """A domain in `base` with labels in the data set's fixed order of classes, or None when it is not there.

    Its classes are those that have images. Folders that are no class are passed over and listed in `ignored`.
    """
    name = f"{benchmark.name}:{part.name}"
    where = locate(benchmark, part, base)
    if not where:
        return None
    if benchmark.of_files:
        images, labels = read_digits(where)
        return ArrayDomain(name, images, labels, benchmark.classes)
    if len(where) == 2:
        return _listed(benchmark, name, *where)
    return _foldered(benchmark, name, where[0])


def _foldered(benchmark: Benchmark, name: str, folder: Path) -> FileDomain:
    found = class_folders(folder)
    assert found.labels is not None
    assert found.classes is not None
    known = {plain(label): index for index, label in enumerate(benchmark.classes)}
    numbers = np.asarray([known.get(plain(label), -1) for label in found.classes], np.int64)
    labels = numbers[found.labels] if len(found) else found.labels
    kept = np.flatnonzero(labels >= 0)
    domain = _domain(benchmark, name, Paths(found.paths.texts.take(kept)), labels[kept])
    strangers = [label for label in found.classes if plain(label) not in known]
    domain.ignored = found.ignored + [f"{folder / label}{not_a_class(benchmark)}" for label in strangers]
    return domain


def _listed(benchmark: Benchmark, name: str, listed: Path, folder: Path) -> FileDomain:
    """A list file whose lines `c/<image> 0` are relative to the data set, whatever stands before `c/`."""
    found = image_list(listed, labelled=True)
    assert found.labels is not None
    assert found.classes is not None
    for word in found.classes:
        if not word.isdecimal() or int(word) >= len(benchmark.classes):
            raise InputError(
                f"{listed} has the label '{word}'; {benchmark.title} has 0 to {len(benchmark.classes) - 1}"
            )
    paths = []
    for path in found.paths:
        parts = path.relative_to(listed.parent).parts if path.is_relative_to(listed.parent) else path.parts
        if ".." in parts:
            raise InputError(f"{listed} names {str(path)[:200]}, which leads out of the data set")
        after = max((at + 1 for at, word in enumerate(parts[:-1]) if word == folder.name), default=len(parts) - 1)
        paths.append(folder.joinpath(*parts[after:]))
    numbers = np.asarray([int(word) for word in found.classes], np.int64)
    return _domain(benchmark, name, paths, numbers[found.labels] if paths else found.labels)


def _domain(benchmark: Benchmark, name: str, paths: Sequence[Path], numbers: Any) -> FileDomain:
    """Files labelled by their number in the data set, renumbered to the classes that have files, order kept."""
    present = np.unique(numbers)
    classes = tuple(benchmark.classes[number] for number in present)
    return FileDomain(name, paths, np.searchsorted(present, numbers).astype(np.int64), classes)


def _list_file(part: Part, base: Path) -> Path | None:
    stems = {stem.format(plain(part.name)) for stem in _LIST_STEMS}
    for folder in (base / "list", base / "image_list", base):
        for child in _children(folder):
            if child.suffix == ".txt" and plain(child.stem) in stems and child.is_file():
                return child
    return None


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.name[0] != ".") if folder.is_dir() else []


def not_a_class(benchmark: Benchmark) -> str:
    """What follows a folder's name in `ignored`."""
    return f" (not a class of {benchmark.title})"


@lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    log.warning("%s", message)
