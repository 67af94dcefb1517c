"""Every reader of edgeda with malformed inputs for it, and the command or function that reads them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.cage import World, command, guarded
from tests.fuzz.seeds import Seeds

Action = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One malformed input. `place` writes it into a world, `act` gives what reads it there."""

    reader: str
    name: str
    content: bytes
    """What tells it from every other input of its reader."""
    place: Callable[[World], object]
    act: Callable[[World], Action]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.reader.encode() + b"\0" + self.content).hexdigest()


Cases = Iterator[Case]
Maker = Callable[[Seeds, random.Random, int], Cases]


def file_case(reader: str, name: str, file: str, content: bytes, act: Callable[[World], Action]) -> Case:
    """A case of one file in the input folder."""
    return Case(reader, name, f"{file} ".encode() + content, lambda world: put(world, file, content), act)


def put(world: World, file: str, content: bytes) -> Path:
    """Write a file of the input folder."""
    path = world.inputs / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def run_like(world: World, seeds: Seeds, changed: dict[str, bytes | None]) -> Path:
    """The seeds' run with some files replaced, or left out; the others are links to the same bytes."""
    root = world.inputs / "run"
    for path in sorted(seeds.run.rglob("*")):
        name = path.relative_to(seeds.run).as_posix()
        if path.is_file() and name not in changed:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, root / name)
    for name, content in changed.items():
        if content is not None:
            put(world, f"run/{name}", content)
    return root


def predict(world: World, model: object, source: object, *more: object) -> Action:
    """`edgeda predict` on ONNX Runtime."""
    return command("predict", str(model), "--source", str(source), "--engine", "onnxruntime", *map(str, more))


def evaluate(model: object, data: object) -> Action:
    """`edgeda evaluate`."""
    return command("evaluate", str(model), "--data", str(data))


def report(world: World, run: object) -> Action:
    """`edgeda report` to a file of the output folder, which must not hold a script afterwards."""

    def act() -> None:
        try:
            command("report", str(run), "--out", str(world.out / "r.html"), "--seconds", "0.01")()
        finally:
            page = world.out / "r.html"
            if page.exists() and "<script" in page.read_text(encoding="utf-8").lower():
                raise AssertionError("the report holds a script")

    return act


def compare(world: World, run: object) -> Action:
    """`edgeda compare` as a page."""
    return command("compare", str(run), "--html", str(world.out / "c.html"), "--seconds", "0.01")


def export(world: World, run: object) -> Action:
    """`edgeda export` to the output folder."""
    return command("export", str(run), "--out", str(world.out / "e"), "--threads", "1")


def bundle(world: World, model: object, kit: str) -> Action:
    """`edgeda bundle` to the output folder."""
    return command("bundle", str(model), "--for", kit, "--out", str(world.out / kit))


def profile(model: object) -> Action:
    """`edgeda profile` of one engine."""
    return command(
        "profile", str(model), "--engine", "onnxruntime", "--seconds", "0.01", "--no-memory", "--threads", "1"
    )


def prepare(world: World, name: str, path: object) -> Action:
    """`edgeda datasets prepare` into the output folder."""
    return command("datasets", "prepare", name, "--from", str(path), "--root", str(world.out / "data"), "--partial")


def library(call: Callable[[], object]) -> Action:
    """A function of the library behind the command line's own handling of errors."""
    return guarded(call)


def all_makers() -> dict[str, Maker]:
    """By reader, what makes its cases."""
    from tests.fuzz import data_cases, model_cases, run_cases, text_cases

    return {**text_cases.MAKERS, **data_cases.MAKERS, **model_cases.MAKERS, **run_cases.MAKERS}
