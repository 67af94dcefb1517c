"""Small folders of real images, and the command line as a user runs it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.faults.driver import Driver

TINY = ["--set", "data.input_size=32", "--set", "data.resize=squash", "--set", "data.crop_pct=1.0",
        "--set", "teacher.backbone=test_resnet", "--set", "student.backbone=test_resnet",
        "--set", "teacher.pretrained=none", "--set", "student.pretrained=none",
        "--set", "train.warmup_epochs=1", "--precision", "fp32", "--batch-size", "8"]  # fmt: skip

# A shell starts its background with SIGINT ignored, and children inherit that: Ctrl-C is tested all the same.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Edgeda = Callable[..., Ran]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Quiet, offline, one thread, and a cache folder of its own."""
    cache = tmp_path_factory.mktemp("cache")
    kept = {name: value for name, value in os.environ.items() if name != "EDGEDA_DATA"}
    return {**kept, "EDGEDA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


@pytest.fixture(scope="session")
def driver(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A process that has everything imported and forks one for each command."""
    from tests.faults.driver import Driver

    made = Driver(tmp_path_factory.mktemp("driver"), environment)
    yield made
    made.close()


@pytest.fixture(scope="session")
def edgeda(driver: Driver) -> Edgeda:
    """Run `edgeda ARGUMENTS` in a process of its own, forked from the driver's."""

    def run(*arguments: object, cwd: Path | None = None) -> Ran:
        ended = driver.run(*arguments, cwd=cwd or Path.cwd(), timeout=900)
        return Ran(ended.code, ended.out, ended.err)

    return run


@pytest.fixture(scope="session")
def fresh(environment: dict[str, str]) -> Edgeda:
    """Run `edgeda ARGUMENTS` in a new process of Python, which imports everything again and hashes otherwise."""

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 900) -> Ran:
        command = [sys.executable, "-m", "edgeda", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@dataclass(frozen=True)
class Folders:
    source: Path
    target: Path
    target_test: Path

    @property
    def arguments(self) -> list[str]:
        return ["--source", str(self.source), "--target", str(self.target), "--target-test", str(self.target_test)]


def write_digits(root: Path, per_class: int, start: int, suffix: str, classes: str = "0123") -> None:
    """Real optical digits of scikit-learn as image files, `root/<digit>/<number>.<suffix>`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in classes:
        folder = root / digit
        folder.mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(digits.target == int(digit))[start : start + per_class]:
            pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 40)).convert("RGB").save(folder / f"{index}.{suffix}")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three folders of PNG and JPEG files: source, inverted target (unlabelled, nested), labelled target-test."""
    root = tmp_path_factory.mktemp("images")
    found = Folders(root / "source", root / "target", root / "target-test")
    write_digits(found.source, 10, 0, "png")
    write_digits(root / "plain", 8, 20, "jpg")
    write_digits(root / "plain-test", 5, 40, "png")
    for plain, inverted in (
        (root / "plain", found.target / "camera" / "monday"),
        (root / "plain-test", found.target_test),
    ):
        for path in sorted(plain.rglob("*.*")):
            new = inverted / path.relative_to(plain)
            new.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - np.asarray(Image.open(path).convert("RGB"))).save(new)
    return found


@pytest.fixture(scope="session")
def run_directory(edgeda: Edgeda, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the folders above, trained by the command line."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    ran = edgeda("adapt", *folders.arguments, *TINY, "--epochs", 2, "--out", out)
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(autouse=True)
def plain_log() -> None:
    """Notices go to pytest's own handler, whatever a command line in this process has set up before."""
    ours = logging.getLogger("edgeda")
    ours.handlers[:], ours.propagate = [], True
    ours.setLevel(logging.NOTSET)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, environment: dict[str, str]
) -> Edgeda:
    """The same in this process, in an empty folder: faster, for what ends before training."""
    from edgeda.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEDA_DATA", raising=False)
    monkeypatch.setenv("EDGEDA_CACHE", environment["EDGEDA_CACHE"])

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["edgeda", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return Ran(int(ended.value.code or 0), written.out, written.err)

    return run
