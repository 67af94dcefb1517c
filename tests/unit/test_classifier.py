"""The classifier's contract: channels, crops, batches, threads, files swapped under it; numbers by hand."""

from __future__ import annotations

import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgeda.data.augment import prepare
from edgeda.errors import InputError
from edgeda.runtime import Classifier
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Preprocessing, network_input, square_pixels
from tests.unit.test_runtime import ENGINES, UNIT, plain, write_model

RED, BLUE = plain(255, 0, 0), plain(0, 0, 255)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def red_probability(red: float, blue: float) -> float:
    """The model's logits are (r - b, b - r) of mean colours in [0, 1]."""
    return 1 / (1 + math.exp(-2 * (red - blue)))


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("shape", [(480, 640, 3), (37, 20, 3), (1, 1, 3), (20_000, 3, 3)])
def test_the_runtime_sees_the_pixels_of_training(resize: str, shape: tuple[int, int, int]) -> None:
    preprocessing = Preprocessing(size=32, resize=resize)
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    squares = square_pixels(Image.fromarray(frame), preprocessing)[None]
    trained = prepare(torch.tensor(squares), preprocessing).numpy()
    for channels, pixels in (("rgb", frame), ("bgr", frame[..., ::-1])):
        square = square_pixels(pixels, preprocessing, channels)
        np.testing.assert_array_equal(square, squares[0])
        np.testing.assert_allclose(network_input(square[None], preprocessing), trained, atol=2e-6)


@pytest.mark.parametrize("shape", [(480, 640), (641, 480), (37, 20), (20, 37), (9, 1000)])
def test_only_the_part_that_counts_is_read_and_the_filter_reaches_beyond_it(shape: tuple[int, int]) -> None:
    """Reading less changes nothing but the rounding of a pixel that lies between two values."""
    preprocessing = Preprocessing(size=32, resize="crop")
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    left, top = (shape[1] - min(shape)) / 2, (shape[0] - min(shape)) / 2
    whole = Image.fromarray(frame).resize(
        (37, 37), Image.Resampling.BILINEAR, box=(left, top, left + min(shape), top + min(shape))
    )
    difference = np.abs(square_pixels(frame, preprocessing).astype(int) - np.asarray(whole))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_parts_of_frames_are_read_in_place() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    preprocessing = Preprocessing(size=16, resize="squash")
    frame.flags.writeable = False
    views = (frame[3:29, 5:41], frame[:, ::-1], frame[::-1], frame[::2, ::3], frame[7:8, 2:59], frame[..., ::-1], frame)
    for view in views:
        expected = square_pixels(Image.fromarray(view.copy()), preprocessing)
        np.testing.assert_array_equal(square_pixels(view, preprocessing), expected)


def test_order_of_channels_is_said_not_guessed(model: Path) -> None:
    classifier = Classifier(model, "onnxruntime")
    assert [one.label for one in (*classifier(RED), *classifier(RED, channels="bgr"))] == ["red", "blue"]
    with pytest.raises(InputError, match="no order of channels 'brg'; did you mean"):
        classifier(RED, channels="brg")


def test_grey_and_alpha_arrays_are_read_like_files(model: Path) -> None:
    classifier = Classifier(model, "onnxruntime")
    half_red = np.dstack([RED, np.full((8, 8), 128, np.uint8)])
    grey, single, alpha = classifier([np.full((8, 8), 77, np.uint8), np.full((5, 6, 1), 77, np.uint8), half_red])
    assert grey.probability == single.probability == pytest.approx(0.5)
    assert alpha.probabilities[0] == pytest.approx(red_probability(128 / 255, 0), abs=1e-6)
    for bad, words in (
        (np.zeros((8, 8), np.uint16), r"image 0 must be .*got uint16 \(8, 8\); scale 16-bit"),
        (np.zeros((0, 8, 3), np.uint8), "it has no pixels"),
        (np.zeros((8, 8, 2), np.uint8), r"got uint8 \(8, 8, 2\)"),
        (np.zeros((8, 8, 3), bool), "got bool"),
        (Image.new("F", (8, 8)), "cannot read image 0: its pixels are floating-point"),
    ):
        with pytest.raises(InputError, match=words):
            classifier(bad)


def test_top_names_the_likeliest_first(tmp_path: Path) -> None:
    weight = np.array([[1.0, 0, 0], [3.0, 0, 0], [2.0, 0, 0]], np.float32)
    (one,) = Classifier(write_model(tmp_path / "m.onnx", weight=weight, classes=("a", "b", "c")), "onnxruntime")(RED)
    total = math.exp(1) + math.exp(2) + math.exp(3)
    assert one.top(2) == [("b", pytest.approx(math.exp(3) / total)), ("c", pytest.approx(math.exp(2) / total))]
    assert [name for name, _ in one.top(9)] == ["b", "c", "a"]
    with pytest.raises(InputError, match="at least 1"):
        one.top(0)


def test_a_preprocessed_batch_of_any_length(model: Path, tmp_path: Path) -> None:
    pictures = [plain(3 * level, 0, 100) for level in range(70)]
    batch = network_input(np.stack(pictures), UNIT)
    expected = [one.probability for one in Classifier(model, "onnxruntime")(pictures)]
    fixed = Classifier(write_model(tmp_path / "fixed.onnx", (4, 3, 8, 8)), "onnxruntime")
    for classifier in (Classifier(model, "onnxruntime"), fixed):  # the second pads its last portion itself
        np.testing.assert_allclose([one.probability for one in classifier(batch)], expected, atol=1e-6)
    with pytest.raises(InputError, match=r"expected images float32 \(B, 3, 8, 8\), got float32 \(1, 3, 9, 8\)"):
        Classifier(model, "onnxruntime")(np.zeros((1, 3, 9, 8), np.float32))


@pytest.mark.parametrize("order", ["NHWC", "NCHW"])
def test_models_of_raw_pixels_get_them_in_their_layout(model: Path, order: str) -> None:
    classifier = Classifier(model, "onnxruntime")
    expected = classifier([RED, BLUE])

    class Raw:
        name, precision, concurrent, fixed_batch, input_shape = "onnxruntime", "fp32", True, None, (3, 8, 8)
        manifest = replace(classifier.manifest, layout=f"uint8 {order} RGB")

        def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            assert batch.dtype == np.uint8
            colours = batch.mean((1, 2) if order == "NHWC" else (2, 3)) / 255
            return (colours @ np.array([[1, -1], [0, 0], [-1, 1]])).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeda.runtime.classifier.open_fastest", lambda *_: Raw())
        raw = Classifier(model)([RED, BLUE])
    for one, other in zip(raw, expected, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


def test_boxes_are_widened_clipped_and_kept_in_order(model: Path) -> None:
    frame = np.concatenate([plain(255, 0, 0, 20, 10), plain(0, 0, 255, 20, 10)], axis=1)  # red | blue, 20 x 20
    boxes = [[0, 0, 10, 20], [12.2, 3, 99, 99], [-50, -50, 0, 0], [5, 5, 5, 9], [9, 9, 3, 12], [9.9, 0, 10.0, 1]]
    classifier = Classifier(model, "onnxruntime")
    for picture, channels in ((frame, "rgb"), (frame[..., ::-1], "bgr"), (Image.fromarray(frame), "rgb")):
        found = classifier(picture, boxes, channels=channels)
        assert [one and one.label for one in found] == ["red", "blue", None, None, None, "red"]
    assert found[0].probability == pytest.approx(red_probability(1, 0), abs=1e-6)
    assert classifier(frame, []) == classifier(frame, np.zeros((0, 4))) == []
    for bad, words in (
        ([[0, 0, 1, 1], [0, math.nan, 1, 1]], "box 1 is not finite"),
        ([[0, 0, math.inf, 1]], "box 0 is not finite"),
        ([0, 0, 1, 1], r"boxes must be \(N, 4\)"),
        ([["left", 0, 1, 1]], "boxes must be numbers"),
    ):
        with pytest.raises(InputError, match=words):
            classifier(frame, bad)


def test_supervision_detections_get_labels(model: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="the package supervision is not installed")
    frame = np.concatenate([RED, BLUE], axis=1)[..., ::-1]
    given = supervision.Detections(
        np.array([[0, 0, 8, 8], [8, 0, 16, 8], [20, 20, 30, 30]], float), class_id=np.array([7, 8, 9])
    )
    labelled = Classifier(model, "onnxruntime").detections(frame, given, channels="bgr")
    assert labelled.data["label"].tolist() == ["red", "blue", ""]
    assert labelled.data["label_id"].tolist() == [0, 1, -1]
    assert labelled.class_id.tolist() == [7, 8, 9]
    assert labelled[labelled.data["label"] == "blue"].xyxy.tolist() == [[8, 0, 16, 8]]
    assert "label" not in given.data
    with pytest.raises(InputError, match="expected detections with xyxy and data, got list"):
        Classifier(model, "onnxruntime").detections(frame, [], channels="bgr")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_threads_share_a_classifier(model: Path, engine: str, concurrency: int) -> None:
    classifier = Classifier(model, engine, 1, concurrency=concurrency)
    together = threading.Barrier(8)

    def one(level: int) -> list[float]:
        together.wait()
        return [classifier(plain(level, 0, 9))[0].probabilities[0] for _ in range(25)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(0, 240, 30)))
    for level, values in zip(range(0, 240, 30), found, strict=True):
        np.testing.assert_allclose(values, red_probability(level / 255, 9 / 255), atol=1e-6)


def test_of_two_engines_the_faster_one_is_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for winner, loser in (ENGINES, ENGINES[::-1]):
        times = {winner: 1.0, loser: 2.0}
        monkeypatch.setattr("edgeda.runtime.engine_choice.milliseconds", lambda backend, at=times: at[backend.name])
        assert Classifier(model).backend.name == winner
    assert Classifier(model, "onnxruntime").backend.name == "onnxruntime"


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "ir"])
def test_a_model_swapped_under_a_running_process_changes_nothing(tmp_path: Path, model: Path, kind: str) -> None:
    """Files are overwritten in place, which also reaches whoever maps them into memory."""
    path, engine = model, kind
    if kind == "ir":
        import openvino

        path, engine = tmp_path / "ir" / "model.xml", "openvino"
        openvino.save_model(openvino.Core().read_model(model), path, compress_to_fp16=False)
        manifest = Manifest(("red", "blue"), UNIT, "mean-colour", "fp32", (1, None))
        (path.parent / "manifest.json").write_text(manifest.embedded())
    classifier = Classifier(path, engine)
    before = classifier(RED)[0].probability
    for file in (path, path.with_suffix(".bin")):
        if file.exists():
            size = file.stat().st_size
            with file.open("r+b") as stream:
                stream.write(b"\x7f" * size)
    assert classifier(RED)[0].probability == before
    shutil.rmtree(path.parent)
    assert classifier(BLUE)[0].label == "blue"


def readme_lines(tmp_path: Path) -> list[str]:
    """Both snippets of README's section on embedding, with names of this folder's files."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("## On the device")[1].split("\n## ")[0]
    lines = [line.removeprefix("    ") for line in section.splitlines() if line.startswith("    ")]
    text = "\n".join(lines).replace("runs/demo/exports/student.onnx", str(tmp_path / "model.onnx"))
    return text.replace('"image.png"', repr(str(tmp_path / "image.png"))).splitlines()


def test_the_exceptions_of_readme_are_those_to_catch(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(RED).save(tmp_path / "image.png")
    lines = readme_lines(tmp_path)
    at = next(number for number, line in enumerate(lines) if "EdgedaError" in line)
    names: dict[str, object] = {}
    exec("\n".join(lines[:at]), names)
    exec("\n".join(lines[at:]), names)
    assert len(set(capsys.readouterr().out.split())) == 1, "a label, twice"
    (tmp_path / "image.png").write_bytes(b"no image")
    exec("\n".join(lines[at:]), names)
    assert capsys.readouterr().out.startswith("skipped: cannot read image")
    model.write_bytes(b"no model")
    with pytest.raises(InputError):
        exec("\n".join(lines[:at]), names)
