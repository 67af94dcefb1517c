"""A film as a target."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgeda.data import ImageSet, load_target
from edgeda.data.images import decode
from edgeda.data.opening import open_unlabelled
from edgeda.recipe import VideoRecipe
from tests.image_trees import (
    SIXTEEN,
    VIDEO,
    data_recipe,
    refusal,
)

# --- video -----------------------------------------------------------------------------------------------------------


def film(path: Path, frames: int = 30, rate: float = 10.0) -> Path:
    """A film whose frame i is of the grey 8 i."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (32, 32))
    for index in range(frames):
        writer.write(np.full((32, 32, 3), 8 * index, np.uint8))
    writer.release()
    return path


def shown(found: ImageSet) -> list[int]:
    return [round(float(square.mean()) / 8) for square in found.squares]


@pytest.mark.parametrize(
    ("every_s", "max_frames", "expected"),
    [
        (0.5, 5000, [0, 5, 10, 15, 20, 25]),
        (1.0, 5000, [0, 10, 20]),
        (0.0, 4, [0, 10, 19, 29]),
        (0.3, 3, [0, 12, 27]),
        (60.0, 5000, [0]),
    ],
)
def test_frames_are_taken_every_so_many_seconds(every_s, max_frames, expected, tmp_path):
    path = film(tmp_path / "camera.avi")
    domain = open_unlabelled(str(path), VideoRecipe(every_s=every_s, max_frames=max_frames))
    found = decode(domain, SIXTEEN, "target")
    assert shown(found) == expected
    assert found.names == tuple(f"{path} frame {number}" for number in expected)
    assert shown(decode(domain, SIXTEEN, "target")) == expected, "a film can be read again"


def test_frames_can_be_read_out_of_order(tmp_path):
    domain = open_unlabelled(str(film(tmp_path / "camera.avi")), VideoRecipe(every_s=0.5))
    greys = [round(float(np.asarray(domain.read(index)).mean()) / 8) for index in (4, 1, 5, 5, 0)]
    assert greys == [20, 5, 25, 25, 0]


def test_colours_of_a_film_are_rgb(tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (32, 32))
    writer.write(np.full((32, 32, 3), (0, 0, 255), np.uint8))  # OpenCV's order: blue, green, red
    writer.release()
    red, green, blue = decode(open_unlabelled(str(tmp_path / "red.avi"), VIDEO), SIXTEEN, "target").squares[0, 8, 8]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("content", [b"", b"this is no film", "header"])
def test_a_file_that_is_no_film(content, tmp_path):
    pytest.importorskip("cv2")
    path = tmp_path / "camera.avi"
    if content == "header":
        film(path)
        content = path.read_bytes()[:200]
    path.write_bytes(content)
    message = refusal(data_recipe(source="x", target=path), call=load_target)
    assert str(path) in message or "camera.avi" in message


def test_a_film_cut_off_gives_the_frames_it_has(tmp_path):
    path = film(tmp_path / "camera.avi")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    domain = open_unlabelled(str(path), VideoRecipe(every_s=0.5))
    found = decode(domain, SIXTEEN, "target")
    count = len(found)
    assert 1 <= count < 6
    assert shown(found) == [0, 5, 10, 15, 20, 25][:count]
    assert found.skipped == tuple(f"cannot decode {domain.item(index)}" for index in range(count, len(domain)))


def test_a_film_cannot_be_a_source(tmp_path):
    assert "cannot be labelled images" in refusal(str(film(tmp_path / "camera.avi")))


def test_a_recording_that_does_not_say_how_long_it_is(tmp_path):
    """As one that was piped: its header was written before anybody knew."""
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    path, piped = film(tmp_path / "camera.avi"), tmp_path / "piped.mkv"
    command = ["ffmpeg", "-loglevel", "error", "-i", str(path), "-c", "copy", "-f", "matroska", "-"]
    piped.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    found = decode(open_unlabelled(str(piped), VideoRecipe(every_s=0.5)), SIXTEEN, "target")
    assert shown(found) == [0, 5, 10, 15, 20, 25]
