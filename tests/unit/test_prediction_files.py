"""What `predict --save` writes: inside its folder, whole, and without what an address keeps secret."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeda.errors import InputError
from edgeda.predict import predict
from edgeda.prediction_files import Saver, file_name
from edgeda.prediction_sources import open_sources
from edgeda.runtime import Result, Source, VideoFile
from edgeda.runtime.classifier import Prediction
from edgeda.runtime.sources import Frame, Stream, shown_address
from tests.unit.test_bundling import write_model

pytest.importorskip("cv2", reason="OpenCV is not installed")


def result(source: Source, index: int, picture: Image.Image | np.ndarray) -> Result:
    prediction = Prediction("cat", 0.9, np.array([0.9, 0.1]), ("cat", "dog"))
    return Result(Frame(source, index, picture, 0.0), prediction, None, None, picture, 1.0)


def test_a_list_that_names_what_lies_elsewhere_is_saved_inside(tmp_path: Path):
    for name in ("lists/near.png", "other/pic.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    (tmp_path / "lists/list.txt").write_text("near.png\n../other/pic.png\n")
    (source,) = open_sources(str(tmp_path / "lists/list.txt"))
    saver = Saver(tmp_path / "a" / "saved")
    for index in range(2):
        saver.save(result(source, index, Image.new("RGB", (40, 30))))
    saver.close()
    assert sorted(path.name for path in (tmp_path / "a").rglob("*.jpg")) == ["near.jpg", "pic.jpg"]
    assert {path.parent for path in tmp_path.rglob("*.jpg")} == {tmp_path / "a" / "saved"}


def test_a_video_that_a_full_disk_tore_does_not_get_its_name(tmp_path: Path):
    random = np.random.default_rng(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    saver = Saver(tmp_path / "saved")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        for index in range(60):
            saver.save(result(VideoFile(Path("gate.avi")), index, random.integers(0, 256, (96, 128, 3), np.uint8)))
        with pytest.raises(InputError, match=r"gate\.mp4 could not be written to its end"):
            saver.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "saved").iterdir()) == []
    saver = Saver(tmp_path / "saved")
    saver.save(result(VideoFile(Path("gate.avi")), 0, random.integers(0, 256, (96, 128, 3), np.uint8)))
    saver.close()
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["gate.mp4"]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://cam/s", "rtsp://cam/s"),
        ("rtsp://user:secret@cam/s", "rtsp://***@cam/s"),
        ("rtsp://user:sec@ret@cam/s", "rtsp://***@cam/s"),
        ("rtsp://user:sec/ret@cam/s", "rtsp://***@cam/s"),
        ("http://cam/s?pwd=secret", "http://cam/s?***"),
        ("http://cam/s?pwd=sec@ret", "http://***"),
        ("rtsp://user:sec?ret@cam/s", "rtsp://***"),
        ("0", "0"),
        ("films/what?.mp4", "films/what?.mp4"),
    ],
)
def test_nothing_secret_of_an_address_is_shown(address: str, shown: str):
    assert shown_address(address) == shown
    assert file_name(Stream(address).name).count("ret") == 0


def test_two_channels_behind_one_address_are_two_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgeda.runtime.sources.FIRST_WAIT_S", 0.001)
    model, channel = str(write_model(tmp_path / "student.onnx")), "http://me:secret@127.0.0.1:9/live?channel="
    with pytest.raises(InputError) as caught:
        predict(model, [f"{channel}1", f"{channel}2"], emit=lambda line: None, retries=1)
    assert "127.0.0.1:9/live?*** in 1 tries" in str(caught.value)
    assert "127.0.0.1:9/live?*** (2) in 1 tries" in str(caught.value)
    with pytest.raises(InputError, match="given twice"):
        predict(model, [f"{channel}1", f"{channel}1"], emit=lambda line: None, retries=1)
