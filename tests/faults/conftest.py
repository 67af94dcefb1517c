"""One driver for all tests of faults, with an undisturbed run to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Folders
from tests.faults.driver import Driver, Ended, adapt_arguments

SHORT = ["--epochs", 1, "--set", "train.warmup_epochs=0"]


@dataclass(frozen=True)
class Site:
    """The driver, an undisturbed short run with its export, and how many file changes each took."""

    driver: Driver
    folders: Folders
    whole: Path
    adapted: Ended
    exported: Ended

    def adapt(self, out: Path) -> list[object]:
        """A run of 8 steps in two stages, a checkpoint after each."""
        return [*adapt_arguments(self.folders.source, self.folders.target, out), *SHORT]

    def again(self, out: Path) -> Ended:
        """Go on with a run, or begin it again where it had not begun."""
        begun = (out / "recipe.yaml").is_file()
        return self.driver.run(*(["adapt", "--out", out, "--resume"] if begun else self.adapt(out)))

    def export(self, run: Path) -> list[object]:
        """Export a run."""
        return ["export", run, "--threads", 1]

    def predict(self, save: Path) -> list[object]:
        """Save predictions of the undisturbed run's export."""
        model = self.whole / "exports" / "student.onnx"
        return ["predict", model, "--source", self.folders.target, "--save", save, "--json",
                "--engine", "onnxruntime", "--threads", 1]  # fmt: skip


@pytest.fixture(scope="session")
def site(folders: Folders, driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Everything that faults are tried on."""
    whole = tmp_path_factory.mktemp("faults") / "run"
    adapted = driver.run(*adapt_arguments(folders.source, folders.target, whole), *SHORT, below=whole)
    assert adapted.code == 0, adapted.err
    exported = driver.run("export", whole, "--threads", 1, below=whole)
    assert exported.code == 0, exported.err
    return Site(driver, folders, whole, adapted, exported)
