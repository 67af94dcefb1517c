"""Mutations that know the structure: bytes at their boundaries, JSON and YAML value by value. All from a seed."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

Mutant = tuple[str, bytes]
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


class Raw(str):
    """Text that goes into JSON or YAML as it is."""


NASTY_NAMES = (
    "<script>alert(1)</script>",
    "a\nb",
    "a\r\nerror: b",
    "nul\0byte",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    " ",
    "\u202egnp.exe",
    "\ud800",
    "\x1b]0;owned\x07",
    "$(touch pwned)",
    "`touch pwned`",
    "; rm -rf ~",
    "a;b;c",
    "%s%n",
    '"quoted"',
    "'",
    "\\",
    "|pipe|",
    "=1+1",
    "-rf",
    "--help",
    "${HOME}",
    "$name",
    "{0}",
    "x" * 1000,
    "é" * 1000,
    "\U0001f600" * 300,
    "con",
    "a/b",
    "[bold]x[/bold]",
    "]]>",
    "<!--",
    "&amp;",
    "\u2028line",
    "\ufeffbom",
    "\ufffe",
)
"""Class names and texts that somebody might want harm with."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    5,
    8192,
    -(2**63),
    2**64,
    10**30,
    1.5,
    -0.5,
    1e308,
    Raw("1e999"),
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("9" * 5000),
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [1, 2, 3],
    ["x"] * 3,
    list(range(1000)),
    Raw("[" * 5000 + "]" * 5000),
    "text",
    *NASTY_NAMES[:16],
    "x" * 100_000,
)


def paths_of(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a JSON document, its containers included."""
    yield at
    children = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document[:3])
        if isinstance(document, list)
        else ()
    )
    for key, child in children:
        yield from paths_of(child, (*at, key))


def replaced(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    if not at:
        return value
    changed = copy.deepcopy(document)
    inside = changed
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = value
    return changed


def removed(document: Any, at: tuple[Any, ...]) -> Any:
    """A copy without what is at a place."""
    changed = copy.deepcopy(document)
    inside = changed
    for key in at[:-1]:
        inside = inside[key]
    del inside[at[-1]]
    return changed


def documents(document: Any, chance: random.Random, count: int) -> Iterator[tuple[str, Any]]:
    """`count` documents like a good one: a value of another kind or size, a key gone, one too many."""
    places = list(paths_of(document))
    for _ in range(count):
        at = chance.choice(places)
        name = ".".join(map(str, at)) or "all of it"
        kind = chance.random()
        if kind < 0.18 and at:
            yield f"without {name}", removed(document, at)
        elif kind < 0.24:
            first = replaced(document, at, chance.choice(VALUES))
            second = chance.choice(list(paths_of(first)))
            yield f"{name}, and more", replaced(first, second, chance.choice(VALUES))
        elif kind < 0.3 and isinstance(document, dict):
            yield "a strange key", {**document, chance.choice(NASTY_NAMES): chance.choice(VALUES)}
        else:
            value = chance.choice(VALUES)
            yield f"{name} = {value!r:.30}", replaced(document, at, value)


def to_json(document: Any) -> str:
    """JSON, and beyond it: `Raw` values as they are, lone surrogates as escapes."""
    marks: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            marks.append(value)
            return f"\x01raw{len(marks) - 1}\x01"
        if isinstance(value, dict):
            return {key: marked(child) for key, child in value.items()}
        return [marked(child) for child in value] if isinstance(value, list) else value

    text = json.dumps(marked(document))
    return re.sub(r'"\\u0001raw(\d+)\\u0001"', lambda found: marks[int(found[1])], text)


def json_bytes(document: Any, chance: random.Random, count: int) -> Iterator[Mutant]:
    """Malformed JSON files: mostly wrong values, some broken text."""
    for name, changed in documents(document, chance, count - count // 5):
        yield name, to_json(changed).encode("utf-8", "surrogatepass")
    yield from byte_mutants(json.dumps(document).encode(), chance, count // 5)


def byte_mutants(
    data: bytes, chance: random.Random, count: int, boundaries: tuple[int, ...] = (), header: int = 256
) -> Iterator[Mutant]:
    """Cut at a boundary, bits flipped, numbers made extreme, parts doubled, left out, or filled with rubbish."""
    ends = [at for at in (*boundaries, 0, 1, 4, 8, len(data) // 2, len(data) - 1) if 0 <= at <= len(data)]
    for number in range(count):
        kind = number % 6
        near = (
            chance.choice(ends)
            if boundaries and chance.random() < 0.6
            else chance.randrange(max(1, min(header, len(data))))
        )
        if kind == 0:
            cut = chance.choice(ends) if chance.random() < 0.5 else chance.randrange(len(data) + 1)
            yield f"cut at {cut}", data[:cut]
        elif kind == 1:
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 3, 30))):
                place = min(near + chance.randrange(8), len(data) - 1)
                changed[place] ^= 1 << chance.randrange(8)
                near = chance.randrange(len(data))
            yield f"bits at {near}", bytes(changed)
        elif kind == 2:
            size = chance.choice("BHIQ")
            order = chance.choice("<>")
            value = chance.choice(_EXTREMES) % 2 ** (8 * struct.calcsize(size))
            packed = struct.pack(order + size, value)
            yield f"{value:#x} at {near}", data[:near] + packed + data[near + len(packed) :]
        elif kind == 3:
            length = chance.choice((1, 7, 64, 4096))
            yield f"{length} left out at {near}", data[:near] + data[near + length :]
        elif kind == 4:
            length = chance.choice((1, 16, 1000))
            rubbish = chance.choice((b"\0" * length, b"\xff" * length, chance.randbytes(length)))
            yield f"{length} put in at {near}", data[:near] + rubbish + data[near:]
        else:
            other = chance.randrange(len(data) + 1)
            yield f"from {other} again at {near}", data[:near] + data[other:]
