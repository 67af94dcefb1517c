"""The runtime on models small enough to work out by hand: mean colour of an image -> two classes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeda.errors import InputError, MachineError, MissingExtra
from edgeda.runtime import Classifier
from edgeda.runtime.backends import (
    OnnxRuntimeBackend,
    OpenVinoBackend,
    available_engines,
    open_backend,
)
from edgeda.runtime.classifier import CHUNK, softmax
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.onnx_file import read_metadata
from edgeda.runtime.preprocessing import Preprocessing, network_input, normalize, square_pixels, to_rgb

UNIT = Preprocessing(size=8, resize="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Network input = pixel / 255, so that a logit is a mean colour in [0, 1]."""
RED_MINUS_BLUE = np.array([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]], np.float32)
ENGINES = ("onnxruntime", "openvino")


def write_model(
    path: Path,
    dims: tuple[int | str, ...] = ("batch", 3, 8, 8),
    weight: NDArray[np.float32] = RED_MINUS_BLUE,
    classes: tuple[str, ...] | None = ("red", "blue"),
    quantized: bool = False,
    preprocessing: Preprocessing = UNIT,
) -> Path:
    """images -> global mean -> weight -> logits, as an ONNX file with a manifest unless `classes` is None."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels" if quantized else "images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
    ]
    tensors = [numpy_helper.from_array(weight, "weight")]
    if quantized:
        scale = numpy_helper.from_array(np.array(1 / 255, np.float32), "scale")
        tensors += [scale, numpy_helper.from_array(np.array(0, np.uint8), "zero")]
        nodes = [
            helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["stored"]),
            helper.make_node("DequantizeLinear", ["stored", "scale", "zero"], ["pixels"]),
            *nodes,
        ]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (dims[0], len(weight)))],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    if classes is not None:
        manifest = Manifest(classes, preprocessing, "mean-colour", "int8" if quantized else "fp32", (1, None))
        model.metadata_props.add(key="edgeda", value=manifest.embedded())
    path.write_bytes(model.SerializeToString())
    return path


def plain(red: int, green: int, blue: int, height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    return np.full((height, width, 3), (red, green, blue), np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def test_normalize_by_hand() -> None:
    images = np.array([[[[255, 0, 51]]]], np.uint8)
    values = normalize(images, Preprocessing(size=1))
    expected = [(1.0 - 0.485) / 0.229, (0.0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert values.shape == (1, 3, 1, 1)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.ravel(), expected, atol=1e-6)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16))
    assert np.asarray(to_rgb(image))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_transparency_lies_on_black() -> None:
    pixels = np.array([[[200, 100, 50, 0], [200, 100, 50, 128], [200, 100, 50, 255]]], np.uint8)
    # 200 * 128/255 = 100.4, 100 * 128/255 = 50.2, 50 * 128/255 = 25.1
    assert np.asarray(to_rgb(Image.fromarray(pixels)))[0].tolist() == [[0, 0, 0], [100, 50, 25], [200, 100, 50]]


def test_crop_keeps_the_central_square_and_squash_keeps_everything() -> None:
    wide = np.concatenate([plain(255, 0, 0, 100, 100), plain(0, 255, 0, 100, 100), plain(0, 0, 255, 100, 100)], axis=1)
    cropping = Preprocessing(size=32, resize="crop", mean=UNIT.mean, std=UNIT.std)
    assert cropping.stored_size == 37  # round(32 / 0.875)
    for image in (wide, wide.transpose(1, 0, 2).copy()):
        cropped = network_input(square_pixels(image, cropping)[None], cropping)
        np.testing.assert_array_equal(cropped, np.broadcast_to(np.array([0, 1, 0])[:, None, None], (1, 3, 32, 32)))
    squashed = square_pixels(wide, Preprocessing(size=30, resize="squash"))
    assert squashed[:, [0, 15, 29]].reshape(-1, 9)[0].tolist() == [255, 0, 0, 0, 255, 0, 0, 0, 255]


def test_crop_without_resizing_is_the_exact_middle() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    halving = Preprocessing(size=32, resize="crop", crop_pct=0.5)
    expected = normalize(image[None, 16:48, 16:48], halving)
    np.testing.assert_array_equal(network_input(square_pixels(image, halving)[None], halving), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_are_the_mean_colours_at_any_batch_size(model: Path, engine: str) -> None:
    backend = open_backend(model, engine, threads=1)
    images = np.random.default_rng(0).random((7, 3, 8, 8), dtype=np.float32)
    difference = images.mean((2, 3)) @ np.array([1.0, 0.0, -1.0])
    for batch in (1, 2, 7):
        np.testing.assert_allclose(backend(images[:batch])[:, 0], difference[:batch], atol=1e-6)
    assert (backend.name, backend.input_shape, backend.precision) == (engine, (3, 8, 8), "fp32")
    assert backend.manifest is not None
    assert backend.manifest.classes == ("red", "blue")


@pytest.mark.parametrize("engine", ENGINES)
def test_backends_take_read_only_and_strided_arrays(model: Path, engine: str) -> None:
    backend = open_backend(model, engine, threads=1)
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    images.flags.writeable = False
    flipped = backend(images[:, ::-1])  # BGR: red minus blue changes its sign
    np.testing.assert_allclose(flipped, -backend(images), atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((3, 8, 8), np.float32),
        np.zeros((1, 3, 8, 8), np.float64),
        np.zeros((1, 3, 9, 8), np.float32),
        np.zeros((0, 3, 8, 8), np.float32),
    ],
    ids=["rank", "dtype", "size", "empty"],
)
def test_wrong_input_names_what_was_expected(model: Path, engine: str, batch: NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match=r"expected images float32 \(B, 3, 8, 8\), got"):
        open_backend(model, engine)(batch)


@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_batch_models_are_fed_in_their_own_portions(tmp_path: Path, engine: str) -> None:
    images = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
    expected = images.mean((2, 3)) @ RED_MINUS_BLUE.T
    for size in (1, 2):
        backend = open_backend(write_model(tmp_path / "fixed.onnx", (size, 3, 8, 8)), engine)
        np.testing.assert_allclose(backend(images), expected, atol=1e-6)
    with pytest.raises(InputError, match="exactly 2 images, got 3"):
        backend(images[:3])


@pytest.mark.parametrize("engine", ENGINES)
def test_foreign_models_tell_their_size_or_are_refused(tmp_path: Path, engine: str) -> None:
    fixed = open_backend(write_model(tmp_path / "fixed.onnx", classes=None), engine)
    assert (fixed.manifest, fixed.input_shape) == (None, (3, 8, 8))
    assert fixed.precision == {"onnxruntime": "unknown", "openvino": "fp32"}[engine]
    open_sized = write_model(tmp_path / "open.onnx", ("batch", 3, "height", "width"), classes=None)
    with pytest.raises(InputError, match="leaves the size of its input open"):
        open_backend(open_sized, engine)
    flat = write_model(tmp_path / "flat.onnx", ("batch", 3, 8), classes=None)
    with pytest.raises(InputError, match="3 dimensions"):
        open_backend(flat, engine)
    own_size = write_model(tmp_path / "own.onnx", ("batch", 3, "height", "width"))
    assert open_backend(own_size, engine).input_shape == (3, 8, 8)
    other_size = write_model(tmp_path / "other.onnx", preprocessing=Preprocessing(size=16))
    with pytest.raises(InputError, match="takes 8x8 images, but its own manifest says 16x16"):
        open_backend(other_size, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "kind", ["missing", "empty", "folder", "text", "half", "one_byte_short", "zeros", "picture", "overwritten_middle"]
)
def test_what_is_no_model_is_one_line(tmp_path: Path, model: Path, engine: str, kind: str) -> None:
    good, bad = model.read_bytes(), tmp_path / "bad.onnx"
    content = {
        "empty": b"",
        "text": b"hello, I am not a model\n",
        "half": good[: len(good) // 2],
        "one_byte_short": good[:-1],
        "zeros": bytes(100),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(range(100)),
        "overwritten_middle": good[:40] + b"\xff" * 20 + good[60:],
    }
    if kind == "folder":
        bad.mkdir()
    elif kind != "missing":
        bad.write_bytes(content[kind])
    with pytest.raises(InputError) as caught:
        open_backend(bad, engine)
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metadata_is_read_without_onnx(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    loaded = onnx.load(path)
    loaded.metadata_props.add(key="grüße", value="x" * 300)
    path.write_bytes(loaded.SerializeToString())
    assert read_metadata(path) == {entry.key: entry.value for entry in loaded.metadata_props}
    assert read_metadata(path)["grüße"] == "x" * 300


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"classes": ["a"]}'])
def test_a_broken_manifest_names_the_file(tmp_path: Path, text: str) -> None:
    path = write_model(tmp_path / "model.onnx", classes=None)
    loaded = onnx.load(path)
    loaded.metadata_props.add(key="edgeda", value=text)
    path.write_bytes(loaded.SerializeToString())
    with pytest.raises(InputError, match=r"model\.onnx: the model's manifest"):
        open_backend(path)


def test_openvino_folder_with_its_manifest_beside_it(tmp_path: Path, model: Path) -> None:
    import openvino

    folder = tmp_path / "ir"
    openvino.save_model(openvino.Core().read_model(model), folder / "model.xml", compress_to_fp16=False)
    without = open_backend(folder)
    assert (without.name, without.manifest) == ("openvino", None)
    manifest = Manifest(("warm", "cold"), UNIT, "mean-colour", "fp32", (1, None))
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    assert Classifier(folder)(plain(255, 0, 0))[0].label == "warm"
    with pytest.raises(InputError, match="ONNX Runtime cannot run"):
        open_backend(folder, "onnxruntime")
    (folder / "second.xml").touch()
    with pytest.raises(InputError, match="holds 2 OpenVINO models"):
        open_backend(folder)


def test_a_run_directory_is_called_one_and_its_models_are_named(tmp_path: Path, model: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(InputError, match=f"{tmp_path} is a run directory, not a model; .*: edgeda export {tmp_path}$"):
        Classifier(tmp_path)
    exported = tmp_path / "exports" / "onnx-fp16" / "student.onnx"
    exported.parent.mkdir(parents=True)
    exported.write_bytes(model.read_bytes())
    with pytest.raises(InputError, match=f"not a model; name one of: {exported}$"):
        Classifier(tmp_path, "onnxruntime")


def test_openvino_does_not_say_int8_of_a_graph_that_it_runs_in_float(tmp_path: Path) -> None:
    """The graph has quantized nodes, but no kernel takes integers; an int8 export is in test_export_precisions."""
    path = write_model(tmp_path / "int8.onnx", quantized=True)
    assert OpenVinoBackend(path).precision == "fp32"
    assert OnnxRuntimeBackend(path).precision == "int8"


def test_engines_that_are_asked_for_are_never_replaced(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        open_backend(model, "openvin")
    with pytest.raises(InputError, match="at least 1, got 0"):
        open_backend(model, threads=0)
    with pytest.raises(MachineError, match="has no NoSuchExecutionProvider"):
        OnnxRuntimeBackend(model, providers=["NoSuchExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert available_engines() == ["openvino"]
    assert open_backend(model).name == "openvino"
    with pytest.raises(MissingExtra, match=r"edgeda\[cpu\]"):
        open_backend(model, "onnxruntime")


def test_a_silent_fallback_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    class FallsBack(onnxruntime.InferenceSession):  # type: ignore[misc]
        def get_providers(self) -> list[str]:
            return ["SlowExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", FallsBack)
    with pytest.raises(MachineError, match="fell back from CPUExecutionProvider to SlowExecutionProvider"):
        OnnxRuntimeBackend(model)


def test_softmax_by_hand_and_without_overflow() -> None:
    rows = softmax(np.array([[0.0, math.log(3.0)], [1e4, -1e4]], np.float32))
    np.testing.assert_allclose(rows, [[0.25, 0.75], [1.0, 0.0]], atol=1e-7)


def test_classifier_probabilities_by_hand(model: Path, tmp_path: Path) -> None:
    classifier = Classifier(model, threads=1)
    Image.fromarray(plain(0, 0, 204, 30, 50)).save(tmp_path / "blue.png")
    red, blue, grey = classifier([plain(255, 9, 0, 20, 10), tmp_path / "blue.png", Image.new("L", (5, 9), 100)])
    # logits (r - b, b - r), so P(red) = 1 / (1 + exp(-2 (r - b)))
    assert (red.label, blue.label) == ("red", "blue")
    assert red.probability == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)
    assert blue.probability == pytest.approx(1 / (1 + math.exp(-2 * 0.8)), abs=1e-6)
    np.testing.assert_allclose(blue.probabilities, [1 - blue.probability, blue.probability])
    np.testing.assert_allclose(grey.probabilities, [0.5, 0.5], atol=1e-6)


def test_classifier_keeps_the_order_of_a_list_longer_than_a_chunk(model: Path) -> None:
    reds = [(index * 7) % 256 for index in range(CHUNK * 2 + 3)]
    predictions = Classifier(model, threads=1)([plain(red, 0, 0) for red in reds])
    expected = [1 / (1 + math.exp(-2 * red / 255)) for red in reds]
    np.testing.assert_allclose([one.probabilities[0] for one in predictions], expected, atol=1e-6)
    assert Classifier(model)([]) == []


def test_classifier_says_which_image_is_wrong(model: Path, tmp_path: Path) -> None:
    classifier = Classifier(model)
    good = plain(0, 0, 0)
    for bad, words in (
        (good.astype(np.float32), r"image 1 must be uint8 RGB \(H, W, 3\).*, got float32"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"got uint8 \(2, 8, 8, 3\); give several as a list"),
        (None, "image 1 is a NoneType"),
        (tmp_path / "gone.jpg", "no such image: .*gone.jpg"),
    ):
        with pytest.raises(InputError, match=words):
            classifier([good, bad])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"expected squares uint8 \(B, 8, 8, 3\)"):
        classifier.logits(np.zeros((1, 9, 9, 3), np.uint8))


def test_classifier_refuses_models_it_cannot_trust(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no edgeda manifest"):
        Classifier(write_model(tmp_path / "foreign.onnx", classes=None))
    three = Classifier(write_model(tmp_path / "three.onnx", classes=("a", "b", "c")))
    with pytest.raises(InputError, match="tells 2 classes apart, its manifest names 3"):
        three(plain(0, 0, 0))
    broken = Classifier(write_model(tmp_path / "nan.onnx", weight=np.full((2, 3), np.nan, np.float32)))
    with pytest.raises(InputError, match="not finite"):
        broken(plain(0, 0, 0))


def test_the_runtime_imports_nothing_of_the_workshop() -> None:
    code = (
        "import sys, edgeda.runtime;"
        "heavy = {'torch', 'timm', 'onnx', 'onnxruntime', 'openvino', 'typer', 'pydantic', 'yaml', 'cv2'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
