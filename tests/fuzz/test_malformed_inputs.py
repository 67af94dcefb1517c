"""A few malformed inputs for every reader, in a watched child; `benchmarks/hostile_inputs.py` runs over a thousand."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.cage import World, run_caged
from tests.fuzz.readers import all_makers
from tests.fuzz.seeds import Seeds
from tests.fuzz.traced import traced

COUNTS = {"image": 14, "folder": 8, "recipe": 8, "ONNX file": 8, "summary.json": 4, "metrics.jsonl": 1,
          "recipe of a run": 2, "weights of a run": 5, "video": 3, "digits": 5, "archive": 6}  # fmt: skip
MOST_BYTES = 1_000_000
"""Larger inputs (bombs, names by the thousand) are for the long script."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    return Seeds.make(tmp_path_factory.mktemp("seeds"), trained=False)


@pytest.mark.parametrize("reader", sorted(set(all_makers()) - {"manifest beside a model"}))
def test_what_is_malformed_is_refused_in_one_line_or_read(reader: str, seeds: Seeds, tmp_path: Path):
    made = list(all_makers()[reader](seeds, random.Random(reader), 150))
    small = [case for case in made if len(case.content) < MOST_BYTES]
    chosen = random.Random(1).sample(small, COUNTS.get(reader, 6))
    problems = {}
    for number, case in enumerate(chosen):
        world = World.make(tmp_path / str(number))
        case.place(world)
        outcome = run_caged(case.act(world), world, limit_s=60)
        if outcome.problems:
            problems[case.name] = outcome.problems, outcome.err[-300:]
    assert not problems


def caged(action, tmp_path: Path, limit_s: float = 30):
    return run_caged(action, World.make(tmp_path / "world"), limit_s)


def test_the_cage_sees_what_must_not_happen(tmp_path: Path):
    outside = tmp_path / "outside"
    assert any("outside" in line for line in caged(lambda: outside.write_text("x"), tmp_path / "a").problems)
    world = tmp_path / "b" / "world"
    moved = caged(lambda: (world / "home" / "canary").rename(world / "in" / "moved"), tmp_path / "b")
    assert any("in/moved" in line for line in moved.problems)
    assert any("started" in line for line in caged(lambda: subprocess.run(["true"]), tmp_path / "c").problems)
    assert any("os.system" in line for line in caged(lambda: os.system("true"), tmp_path / "d").problems)
    assert caged(lambda: Path("here").write_text("x"), tmp_path / "e").problems == []
    assert caged(lambda: 1 / 0, tmp_path / "f").problems[0] == "exit code 1"
    assert "still ran" in caged(lambda: os.read(os.pipe()[0], 1), tmp_path / "g", limit_s=0.2).problems[0]


def test_the_cage_sees_what_c_code_does_to_the_inputs(tmp_path: Path):
    canary = tmp_path / "world" / "home" / "canary"
    changed = caged(lambda: _write_behind_the_hook(canary), tmp_path).problems
    assert any(line.startswith("changed") and canary.name in line for line in changed)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_strace_sees_what_c_code_writes(tmp_path: Path):
    (tmp_path / "file").write_text("x")

    def act() -> None:
        _write_behind_the_hook(tmp_path / "file")
        Path("here").write_text("x")
        Path("here").rename("there")

    try:
        found = traced(act, World.make(tmp_path / "world"))
    except RuntimeError as error:
        pytest.skip(str(error))  # a container that forbids ptrace
    assert (found.outcome.code, found.outcome.problems) == (0, [])
    assert found.problems == [f"openat {tmp_path / 'file'}"]
    assert found.inside == 3, "one file made, and both names of it when it was renamed"


def _write_behind_the_hook(path: Path) -> None:
    """As a library written in C would: Python's hook is not told."""
    import ctypes

    libc = ctypes.CDLL(None)
    file = libc.open(os.fsencode(path), os.O_WRONLY | os.O_APPEND)
    libc.write(file, b"x", 1)
    libc.close(file)
