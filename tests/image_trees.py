"""Small trees of images of plain greys, and what is said of wrong ones: for tests of domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeda.data.opening import open_labelled
from edgeda.errors import InputError
from edgeda.recipe import DataRecipe, VideoRecipe
from edgeda.runtime.preprocessing import Preprocessing

SIXTEEN = Preprocessing(16, "squash")
VIDEO = VideoRecipe()
GREYS = {"cat": 40, "dog": 120, "eel": 200}
"""Every image of a class is plainly of this grey: labels can be checked against pixels."""


def picture(path: Path, grey: int, size: tuple[int, int] = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def class_tree(root: Path, names: tuple[str, ...] = ("cat", "dog"), each: int = 4) -> Path:
    for name in names:
        for number in range(each):
            picture(root / name / f"{number}.png", GREYS[name])
    return root


def noise_jpeg(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def spoil(folder: Path) -> list[str]:
    """Four files that no image can be had from; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = noise_jpeg(folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.png").write_text("this is not a picture")
    (folder / "garbage.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    return ["truncated.jpg", "empty.png", "words.png", "garbage.jpg"]


def names_of(domain: Any, root: Path) -> list[str]:
    return [Path(domain.item(index)).relative_to(root).as_posix() for index in range(len(domain))]


def data_recipe(**values: Any) -> DataRecipe:
    return DataRecipe(**{"input_size": 16, "resize": "squash", **{k: str(v) for k, v in values.items()}})


def refusal(*args: Any, call: Any = open_labelled) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)
