"""Compare benchmark data sets on this machine with what was published; no image is decoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeda.data.benchmarks import find_benchmark, locate, missing, not_a_class, read_part
from edgeda.data.catalogue import BENCHMARKS, Benchmark, Part
from edgeda.data.domains import Domain, FileDomain
from edgeda.errors import InputError, some


@dataclass(frozen=True)
class PartCheck:
    """What was found of a domain; `images` None: nothing. `problems` are whole sentences, none when all is well."""

    name: str
    where: str | None
    images: int | None
    published: int
    classes: int
    classes_published: int
    empty_classes: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def check_part(benchmark: Benchmark, part: Part, base: Path) -> PartCheck:
    """Compare a domain with what was published; what cannot be read is a problem, not an error."""
    name = f"{benchmark.name}:{part.name}"
    where = locate(benchmark, part, base)
    expected = len(benchmark.classes)
    try:
        domain = read_part(benchmark, part, base)
    except InputError as error:
        return PartCheck(name, str(where[0]), None, part.images, 0, expected, (), (str(error),))
    if domain is None:
        return PartCheck(name, None, None, part.images, 0, expected, (), (f"{name} is not there",))
    problems = [f"{name}: {line}" for line in domain.ignored if line.endswith(not_a_class(benchmark))]
    counts = _counts(benchmark, domain)
    total = sum(counts.values())
    if total < len(domain):
        problems.append(f"{name}: of {len(domain)} images in {where[0]}, not there: {len(domain) - total}")
    if total != part.images:
        problems.append(f"{name} has {total} images, {part.images} are published")
    empty = tuple(label for label in benchmark.classes if not counts[label])
    if empty:
        problems.append(f"{name} has no image of class {some(empty)}")
    return PartCheck(
        name, str(where[0]), total, part.images, expected - len(empty), expected, empty, tuple(problems)
    )  # fmt: skip


def _counts(benchmark: Benchmark, domain: Domain) -> Counter[str]:
    """Images of each class; of a list file, those that exist."""
    labels, classes = domain.labels, domain.classes
    if labels is None or classes is None:
        return Counter()
    if benchmark.listed and isinstance(domain, FileDomain):
        labels = labels[[index for index, path in enumerate(domain.paths) if path.is_file()]]
    return Counter(classes[label] for label in labels.tolist())


def check(names: list[str], root: Path) -> list[PartCheck]:
    """Every domain of the named data sets; of all that are there at least in part when none is named.

    Raises InputError for an unknown name, and when nothing is there.
    """
    chosen = [find_benchmark(name) for name in names] or [
        benchmark
        for benchmark in BENCHMARKS.values()
        if any(locate(benchmark, part, root / benchmark.folder) for part in benchmark.parts)
    ]
    if not chosen:
        raise InputError(f"no data set is in the folder {root}; `edgeda datasets list` says where each is published")
    rows = [(one, [check_part(one, part, root / one.folder) for part in one.parts]) for one in chosen]
    for benchmark, parts in rows:
        if all(part.images is None for part in parts) and names:
            raise InputError(missing(benchmark, benchmark.parts[0], root / benchmark.folder))
    return [part for _, parts in rows for part in parts]


def listing(root: Path) -> list[dict[str, Any]]:
    """The data sets there are, and which of their domains lie below `root`."""
    return [
        {
            "name": one.name,
            "title": one.title,
            "classes": len(one.classes),
            "images": one.images,
            "folder": str(root / one.folder),
            "published": one.published,
            "layout": one.layout,
            "domains": [
                {
                    "spec": f"{one.name}:{part.name}",
                    "images": part.images,
                    "here": bool(locate(one, part, root / one.folder)),
                }
                for part in one.parts
            ],
        }
        for one in BENCHMARKS.values()
    ]
