"""Commands that are killed, interrupted, or run out of disk: what is left is whole, and going on gives the same.

The fast part of `python benchmarks/faults.py`, which tries hundreds: a few of its faults, other ones at every run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Site
from tests.faults.driver import left_over, outcome


@pytest.fixture(scope="module")
def chance() -> random.Random:
    """Other faults at every run, the same for the number that a failure shows."""
    seed = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)


def saved(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def same_outcome(site: Site, out: Path) -> None:
    assert outcome(out) == outcome(site.whole)
    assert not left_over(out)


def test_adapt_killed_at_random_moments_ends_the_same(site: Site, tmp_path: Path, chance: random.Random):
    out, steps, kills = tmp_path / "run", 0, 0
    for _ in range(3):
        begun = (out / "recipe.yaml").is_file()
        arguments = ["adapt", "--out", out, "--resume"] if begun else site.adapt(out)
        ended = site.driver.run(*arguments, after=chance.uniform(0, 0.9 * site.adapted.seconds))
        steps, kills = steps + ended.steps, kills + (ended.code == -signal.SIGKILL)
    ended = site.again(out)
    assert ended.code == 0, ended.err
    assert 0 <= steps + ended.steps - site.adapted.steps <= kills, "a step for each kill was trained again at most"
    same_outcome(site, out)


def test_adapt_killed_at_changes_of_files_ends_the_same(site: Site, tmp_path: Path, chance: random.Random):
    for at in [2, *chance.sample(range(4, site.adapted.events + 1), 2)]:
        out = tmp_path / str(at) / "run"
        out.parent.mkdir()
        assert site.driver.run(*site.adapt(out), below=out, at=at).code == -signal.SIGKILL, f"change {at}"
        ended = site.again(out)
        assert ended.code == 0, (at, ended.err)
        same_outcome(site, out)


def test_overwrite_killed_while_it_clears_can_be_overwritten(site: Site, tmp_path: Path, chance: random.Random):
    out = tmp_path / "run"
    shutil.copytree(site.whole, out)
    removing = chance.randint(3, 12)
    ended = site.driver.run(*site.adapt(out), "--overwrite", below=out, at=removing)
    assert ended.code == -signal.SIGKILL, f"change {removing}"
    ended = site.driver.run(*site.adapt(out), "--overwrite")
    assert ended.code == 0, (removing, ended.err)
    same_outcome(site, out)


def test_a_full_disk_is_one_line_and_nothing_is_lost(site: Site, tmp_path: Path, chance: random.Random):
    for at in chance.sample(range(1, site.adapted.events - 2), 2):
        out = tmp_path / str(at) / "run"
        out.parent.mkdir()
        ended = site.driver.run(*site.adapt(out), below=out, at=at, strike="ENOSPC")
        assert ended.code == 2, (at, ended.err)
        assert ended.line.startswith("error: the disk is full while"), at
        assert "Traceback" not in ended.err
        assert not left_over(out)
        assert site.again(out).code == 0
        same_outcome(site, out)


def test_an_export_killed_or_out_of_disk_leaves_the_earlier_one(site: Site, tmp_path: Path, chance: random.Random):
    out = tmp_path / "run"
    shutil.copytree(site.whole, out)
    wanted = (site.whole / "exports" / "student.onnx").read_bytes()
    at = chance.randint(1, site.exported.events - 1)  # the folder `exports` is there: it is not made again
    assert site.driver.run(*site.export(out), below=out, at=at).code == -signal.SIGKILL, f"change {at}"
    assert (out / "exports" / "student.onnx").read_bytes() == wanted, f"change {at}"
    ended = site.driver.run(*site.export(out), below=out / "exports", at=4, strike="ENOSPC")
    assert (ended.code, "the disk is full" in ended.line) == (2, True), ended.err
    assert (out / "exports" / "student.onnx").read_bytes() == wanted
    assert not left_over(out), "what the killed one left, too"


def test_predictions_are_saved_whole(site: Site, tmp_path: Path, chance: random.Random):
    whole = site.driver.run(*site.predict(tmp_path / "whole"), below=tmp_path / "whole")
    wanted = saved(tmp_path / "whole")
    assert (whole.code, len(wanted)) == (0, 32), whole.err
    for number in range(8):
        out = tmp_path / str(number)
        at = chance.randint(2, whole.events - 8)  # how many looks for a free name there are may differ
        ended = site.driver.run(*site.predict(out), below=out, at=at, strike="kill" if number % 2 else "ENOSPC")
        assert ended.code in (-signal.SIGKILL, 2), (at, ended.err)
        assert saved(out).items() <= wanted.items(), f"half an image at change {at}"
        assert number % 2 or not left_over(out)


@pytest.mark.parametrize("strike", ["int", "term"])
def test_signals_are_one_line_and_the_run_goes_on(site: Site, tmp_path: Path, chance: random.Random, strike: str):
    out = tmp_path / "run"
    at = chance.randint(3, site.adapted.events - 1)
    ended = site.driver.run(*site.adapt(out), below=out, at=at, strike=strike)
    assert ended.code in (0, 2), (at, ended.err)
    assert "Traceback" not in ended.err
    begun = (out / "recipe.yaml").is_file()
    words = (
        f"stopped; go on with: edgeda adapt --out {out} --resume" if begun else "stopped before anything was written"
    )
    assert ended.code == 0 or ended.line == words, at
    assert site.again(out).code == 0
    same_outcome(site, out)


def test_a_signal_stops_an_export_without_leftovers(site: Site, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(site.whole, out, ignore=shutil.ignore_patterns("exports"))
    ended = site.driver.run(*site.export(out), below=out, at=4, strike="term")
    assert (ended.code, ended.line.startswith("error: interrupted")) == (2, True), ended.err
    assert list((out / "exports").iterdir()) == []


def test_a_clock_that_jumps_changes_nothing(site: Site, tmp_path: Path):
    ended = site.driver.run(*site.adapt(tmp_path / "run"), clock=True)
    assert ended.code == 0, ended.err
    same_outcome(site, tmp_path / "run")


@pytest.mark.parametrize("error", ["EROFS", "EACCES"])
def test_an_output_that_cannot_be_written_is_one_line(site: Site, tmp_path: Path, error: str):
    """As root nothing is forbidden: the system's answer is put in its place."""
    below = tmp_path / "out"
    below.mkdir()
    kit = ["bundle", site.whole, "--for", "python", "--out", below / "kit"]
    for command in (site.adapt(below / "run"), site.predict(below / "saved"), kit):
        ended = site.driver.run(*command, below=below, at=1, strike=error)
        assert ended.code == 2, ended.err
        assert os.strerror({"EROFS": 30, "EACCES": 13}[error]) in ended.line
        assert "Traceback" not in ended.err
        assert not left_over(below)
