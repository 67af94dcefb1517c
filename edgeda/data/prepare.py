"""`edgeda datasets prepare`: from an archive or a folder as downloaded to the layout that edgeda expects."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeda.data.archives import is_archive, unpack
from edgeda.data.benchmarks import find_benchmark, locate, read_part
from edgeda.data.catalogue import Benchmark, Part
from edgeda.data.checks import PartCheck, check_part
from edgeda.data.domains import FileDomain
from edgeda.errors import InputError, from_os_error

log = logging.getLogger(__name__)

_DEEPEST = 4
"""Folders that an archive may wrap around a data set."""


def prepare(name: str, source: Path, root: Path, overwrite: bool = False, partial: bool = False) -> list[PartCheck]:
    """Put the domains that are in `source` into `root`, and say what was found of each.

    `source` is an archive, a folder, or one published file of digits; it is left as it is. All or nothing: InputError
    leaves `root` as it was, for what is not the data set, for counts other than the published ones (unless
    `partial`), and for a domain that is there already (unless `overwrite`).
    """
    benchmark = find_benchmark(name)
    if not source.exists():
        raise InputError(f"no such archive or folder: {source}")
    if source.is_file() and not is_archive(source) and not _is_digit_file(benchmark, source):
        raise InputError(f"{source} is neither a folder nor a .zip, .tar or .tar.gz; expected {benchmark.title}")
    try:
        with _workshop(root, benchmark) as workshop:
            staged = workshop / "new"
            parts = _stage(benchmark, source, staged, workshop)
            found = [check_part(benchmark, part, staged) for part in parts]
            wrong = [problem.replace(str(staged), str(source)) for check in found for problem in check.problems]
            if wrong and not partial:
                more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
                raise InputError(f"{wrong[0]}{more}; nothing was written, --partial takes it as it is")
            _install(benchmark, parts, staged, root / benchmark.folder, workshop / "old", overwrite)
    except OSError as error:
        raise from_os_error(error, f"preparing {benchmark.title} in {root}") from error
    return [check_part(benchmark, part, root / benchmark.folder) for part in parts]


@contextmanager
def _workshop(root: Path, benchmark: Benchmark) -> Iterator[Path]:
    """A folder in `root`, so that finished files can be renamed into place; it goes whatever happens."""
    made = [folder for folder in (root / benchmark.folder, root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{benchmark.name}-", suffix=".part", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in made:
            with suppress(OSError):  # it was not made, or something was prepared in it
                empty.rmdir()


def _stage(benchmark: Benchmark, source: Path, staged: Path, workshop: Path) -> list[Part]:
    """Bring the domains found in `source` to `staged`, laid out as expected."""
    if source.is_dir():
        bring: Callable[[Path, Path], object] = _copy
        tree = source
    else:
        tree, bring = workshop / "unpacked", os.replace
        tree.mkdir()
        if is_archive(source):
            log.info("unpacking %s", source)
            unpack(source, tree)
        else:
            shutil.copyfile(source, tree / source.name)
    base, parts = _search(benchmark, tree)
    if not parts:
        raise InputError(f"no domain of {benchmark.title} is in {source}; expected {benchmark.layout}")
    for part in parts:
        for file, place in _files(benchmark, part, base):
            (staged / place).parent.mkdir(parents=True, exist_ok=True)
            bring(file, staged / place)
    return parts


def _copy(source: Path, target: Path) -> object:
    return shutil.copyfile(source, target)


def _search(benchmark: Benchmark, tree: Path) -> tuple[Path, list[Part]]:
    """The folder with the most domains of a data set, the shallowest of several, with those domains."""
    best: tuple[Path, list[Part]] = (tree, [])
    level = [tree]
    for _ in range(_DEEPEST):
        for folder in level:
            parts = [part for part in benchmark.parts if locate(benchmark, part, folder)]
            if len(parts) > len(best[1]):
                best = folder, parts
        level = [child for folder in level for child in sorted(folder.iterdir()) if _is_open_folder(child)]
    return best


def _is_open_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _is_digit_file(benchmark: Benchmark, path: Path) -> bool:
    return any(path.name in names for part in benchmark.parts for names in part.files)


def _files(benchmark: Benchmark, part: Part, base: Path) -> Iterator[tuple[Path, Path]]:
    """The files of a domain in `base`, each with its place in the data set's folder."""
    where = locate(benchmark, part, base)
    if benchmark.of_files:
        yield from ((file, Path(file.name)) for file in where)
        return
    domain = read_part(benchmark, part, base)
    folder = where[-1]
    if isinstance(domain, FileDomain):
        yield from ((path, part.name / path.relative_to(folder)) for path in domain.paths if path.is_file())
    if len(where) == 2:
        yield where[0], Path("list", f"{part.name}List.txt")


def _install(benchmark: Benchmark, parts: list[Part], staged: Path, base: Path, old: Path, overwrite: bool) -> None:
    """Rename what is staged into `base`, taking back every step when one fails."""
    goes = [path for part in parts for path in _standing(benchmark, part, base)]
    comes = [(path, base / path.relative_to(staged)) for path in _entries(benchmark, staged)]
    goes += [target for _, target in comes if target.exists() and target not in goes]
    if goes and not overwrite:
        raise InputError(f"{goes[0]} exists already; --overwrite replaces it")
    old.mkdir()
    steps = [(path, old / str(number)) for number, path in enumerate(goes)] + comes
    done: list[tuple[Path, Path]] = []
    try:
        for before, after in steps:
            after.parent.mkdir(parents=True, exist_ok=True)
            os.replace(before, after)
            done.append((before, after))
    except BaseException:
        for before, after in reversed(done):
            os.replace(after, before)
        raise


def _standing(benchmark: Benchmark, part: Part, base: Path) -> list[Path]:
    """What of a domain is in `base`, under whatever name: its folder, its list file, its files."""
    where = locate(benchmark, part, base)
    if benchmark.of_files or not where:
        return list(where)
    folder = where[-1]
    return [folder if folder.parent == base else folder.parent, *where[:-1]]


def _entries(benchmark: Benchmark, staged: Path) -> list[Path]:
    """What is renamed as a whole: files of digits, list files, domains' folders."""
    children = sorted(staged.iterdir())
    return [entry for child in children for entry in (sorted(child.iterdir()) if child.name == "list" else [child])]
