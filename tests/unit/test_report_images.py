"""What a report says of the run's images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeda.recipe import Recipe
from edgeda.report.evidence import Evidence, _images


def test_files_that_two_domains_have_in_common_are_said_to_be_skipped_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "lab" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "lab" / name / "0.png")
    shutil.copytree(tmp_path / "lab", tmp_path / "camera")
    (tmp_path / "camera" / "cat" / "broken.png").touch()
    (tmp_path / "lab" / "cat" / "notes.txt").touch()
    camera = str(tmp_path / "camera")
    data = {"source": str(tmp_path / "lab"), "target": camera, "target_test": camera, "input_size": 16}
    recipe = Recipe.model_validate({"data": data})
    found = Evidence()
    _images(found, recipe, {}, ("cat", "dog"), recipe.data.preprocessing)
    assert found.test is not None
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("the run's images: 2 of 8 files skipped: ")
    assert said.count("broken.png") == said.count("notes.txt") == 1
