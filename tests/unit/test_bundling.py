"""Kits: graphs with their preprocessing inside, configuration that other tools read, folders that lose nothing."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeda.bundling import KITS, bundle
from edgeda.bundling.graph import fold
from edgeda.bundling.labels import LONGEST, safe_labels
from edgeda.bundling.wheel import EXTRAS, REQUIRES, WHEEL, runtime_wheel
from edgeda.errors import InputError
from edgeda.runtime import Classifier
from edgeda.runtime.backends import read_manifest
from edgeda.runtime.manifest import METADATA_KEY, Manifest
from edgeda.runtime.preprocessing import Preprocessing
from tests.conftest import Edgeda

ROOT = Path(__file__).parents[2]
NASTY = (
    "<b>cat</b>",
    "../../etc/passwd",
    "two\nlines;and more",
    "x" * 1000,
    "",
    "$name `id` \"'",
    "ü" * 200,
    "two lines and more",
)
SIZE = 16


def write_model(path: Path, classes: tuple[str, ...] = NASTY, batch: int | str = "batch", manifest: bool = True,
                resize: str = "squash", quantized: str | None = None) -> Path:  # fmt: skip
    """A tiny classifier (convolution, mean, matrix) as `edgeda export` would write it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random, count = np.random.default_rng(1), len(classes)
    weights = {"kernel": random.normal(size=(8, 3, 3, 3)), "head": random.normal(size=(8, count)) * 3}
    nodes = [
        helper.make_node(
            "Conv", ["images" if quantized is None else "read", "kernel"], ["features"], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    if quantized:
        initializers += [
            numpy_helper.from_array(np.float32(0.02), "step"),
            numpy_helper.from_array(np.array(128 if quantized == "uint8" else 0, quantized), "zero"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["images", "step", "zero"], ["whole"]),
            helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["read"]),
            *nodes,
        ]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, count])],
        initializers,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    said = Manifest(
        classes, Preprocessing(SIZE, resize, 0.8, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), "tiny",
        "int8" if quantized else "fp32", (1, None), source_run="<b>run</b> ../one\n",
    )  # fmt: skip
    if manifest:
        model.metadata_props.add(key=METADATA_KEY, value=said.embedded())
    onnx.save(model, str(path))
    return path


def probabilities(content: bytes, pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"pixels": pixels})[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "student.onnx")


def test_the_folded_graph_gives_the_classifiers_probabilities_from_pixels(model: Path):
    pictures = np.random.default_rng(2).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    expected = np.stack([p.probabilities for p in Classifier(model)(list(pictures))])
    folded = fold(model, read_manifest(model))
    found = probabilities(folded.content, pictures.transpose(0, 3, 1, 2).astype(np.float32))
    assert np.abs(found - expected).max() < 1e-5
    assert np.ptp(expected, axis=0).max() > 0.01, "the pictures must not all be the same to the model"
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (folded.batch, folded.opset) == (None, 17)


def test_a_folded_graph_is_no_model_for_the_runtime_which_would_normalize_twice(model: Path, tmp_path: Path):
    (tmp_path / "folded.onnx").write_bytes(fold(model, read_manifest(model)).content)
    with pytest.raises(InputError, match="no edgeda manifest"):
        Classifier(tmp_path / "folded.onnx")


def test_folding_is_refused_where_the_folded_graph_would_say_something_else(model: Path, monkeypatch):
    import edgeda.bundling.graph as graph

    monkeypatch.setattr(
        graph, "normalize", lambda squares, preprocessing: np.zeros((len(squares), 3, SIZE, SIZE), np.float32)
    )
    with pytest.raises(InputError, match=r"differs from .* nothing was written"):
        fold(model, read_manifest(model))


def test_a_graph_that_does_not_fit_its_manifest_is_refused(model: Path):
    manifest = read_manifest(model)
    with pytest.raises(InputError, match="tells 8 classes apart, its manifest names 2"):
        fold(model, replace(manifest, classes=("a", "b")))
    with pytest.raises(InputError, match="inputs \\['images'\\]"):
        fold(model, replace(manifest, input_name="other"))


def test_tensorrt_gets_no_uint8_quantization(tmp_path: Path):
    unsigned = write_model(tmp_path / "u8.onnx", quantized="uint8")
    with pytest.raises(InputError, match="quantized to uint8"):
        bundle(str(unsigned), "deepstream", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert bundle(str(unsigned), "triton", tmp_path / "triton").parity["max_abs_error"] < 2e-2
    signed = bundle(str(write_model(tmp_path / "s8.onnx", quantized="int8")), "deepstream", tmp_path / "kit")
    config = (signed.path / "config_infer_primary.txt").read_text()
    assert "network-mode=1" in config
    assert "--int8 --fp16" in (signed.path / "README.md").read_text()


def test_labels_are_one_each_and_hold_no_delimiter():
    labels = safe_labels([*NASTY, "two lines and more"])
    assert len(labels) == len(set(labels)) == len(NASTY) + 1
    assert labels[0] == "<b>cat</b>"
    assert labels[2] == "two lines and more"
    assert labels[4] == "class 4"
    for label in labels:
        assert label.strip() == label != ""
        assert label.isprintable()
        assert ";" not in label
        assert len(label.encode()) <= LONGEST
    assert safe_labels(["a (1)", "a", "a"]) == ["a (1)", "a", "a (2)"]
    assert safe_labels(["a (2)", "a", "a"]) == ["a (2)", "a", "a (5)"]


def test_deepstream_reads_its_configuration(model: Path, tmp_path: Path):
    made = bundle(str(model), "deepstream", tmp_path / "kit")
    for role, mode in (("primary", "1"), ("secondary", "2")):
        read = configparser.ConfigParser(interpolation=None)
        read.read(made.path / f"config_infer_{role}.txt")
        found = dict(read["property"])
        assert found["process-mode"] == mode
        assert found["network-type"] == "1"
        assert found["net-scale-factor"] == "1.0"
        assert "offsets" not in found
        assert found["infer-dims"] == f"3;{SIZE};{SIZE}"
        assert found["network-mode"] == "0"
        assert ("operate-on-gie-id" in found) == (role == "secondary")
        assert (made.path / found["labelfile-path"]).read_text().rstrip("\n").count(";") == len(NASTY) - 1
        assert (made.path / found["onnx-file"]).is_file()
    graph = (made.path / "model.onnx").read_bytes()
    assert probabilities(graph, np.zeros((1, 3, SIZE, SIZE), np.float32)).shape == (1, len(NASTY))
    assert not made.notes


@pytest.mark.parametrize("batch", ["batch", 8])
def test_trtexec_is_given_a_range_of_batches_only_where_there_is_one(tmp_path: Path, batch: int | str):
    path = bundle(str(write_model(tmp_path / "m.onnx", batch=batch)), "deepstream", tmp_path / "kit").path
    (command,) = re.findall(r"--onnx=model.onnx.*?\n\n", (path / "README.md").read_text(), re.DOTALL)
    shapes = [f"--{option}Shapes=pixels:1x3x{SIZE}x{SIZE}" for option in ("min", "opt", "max")]
    saved = ["--onnx=model.onnx", f"--saveEngine=model.onnx_b{1 if batch == 'batch' else batch}_gpu0_fp32.engine"]
    assert command.replace("\\\n", " ").split() == saved + (shapes if batch == "batch" else [])


@pytest.mark.parametrize("kind", ["primary", "secondary"])
def test_nvinfer_finds_the_engine_that_it_has_built(tmp_path: Path, kind: str):
    """It saves <onnx-file>_b<batch-size>_gpu<gpu-id>_<precision>.engine, whatever model-engine-file says."""
    path = bundle(str(write_model(tmp_path / "m.onnx")), "deepstream", tmp_path / "kit").path
    found = dict(
        line.split("=", 1) for line in (path / f"config_infer_{kind}.txt").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )  # fmt: skip
    precision = {"0": "fp32", "1": "int8", "2": "fp16"}[found["network-mode"]]
    saved = f"{found['onnx-file']}_b{found['batch-size']}_gpu{found['gpu-id']}_{precision}.engine"
    assert found["model-engine-file"] == saved
    said = (path / "README.md").read_text()
    assert f" into `{saved}`" in said or f"--saveEngine={saved}" in said


@pytest.mark.parametrize("batch", ["batch", 4])
def test_tritons_client_prints_the_likeliest_classes(
    tmp_path: Path, batch: int | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Of a model with a fixed batch too, whose answer has several rows; the stand-in for a server runs the graph."""
    import runpy
    import types

    path = write_model(tmp_path / "m.onnx", batch=batch)
    made = bundle(str(path), "triton", tmp_path / "kit", "m")
    graph = (made.path / "model_repository/m/1/model.onnx").read_bytes()

    class Given:
        def __init__(self, name: str, shape: list[int], kind: str) -> None:
            self.shape, self.kind = shape, kind

        def set_data_from_numpy(self, values: np.ndarray) -> None:
            assert (list(values.shape), self.kind) == (self.shape, "FP32")
            self.values = values

    class Server:
        def __init__(self, url: str) -> None: ...

        def infer(self, model: str, inputs: list[Given]) -> Any:
            found = probabilities(graph, inputs[0].values)
            return types.SimpleNamespace(as_numpy=lambda name: found)

    http = types.SimpleNamespace(InferInput=Given, InferenceServerClient=Server)
    monkeypatch.setitem(sys.modules, "tritonclient", types.SimpleNamespace(http=http))
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    monkeypatch.setattr(sys, "argv", ["client.py"])
    runpy.run_path(str(made.path / "client.py"), run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ramp = np.repeat(np.broadcast_to(np.linspace(0, 255, SIZE, dtype=np.float32), (3, SIZE, SIZE))[None], 4, axis=0)
    wanted = probabilities(graph, ramp if batch == 4 else ramp[:1])[0]
    assert [line["index"] for line in lines] == np.argsort(-wanted)[:3].tolist()
    labels = (made.path / "model_repository/m/labels.txt").read_text().splitlines()
    assert [line["label"] for line in lines] == [labels[line["index"]] for line in lines]
    assert lines[0]["probability"] == pytest.approx(float(wanted.max()), abs=1e-5)


@pytest.mark.parametrize("out", [".", "..", "kits/.."])
def test_a_kit_needs_a_folder_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str):
    model = write_model(tmp_path / "m.onnx")
    (tmp_path / "empty" / "kits").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match=r"name the kit's folder itself, such as .*gate-camera"):
        bundle(str(model), "python", Path(out))


def test_a_model_of_central_squares_is_told_how_to_crop(tmp_path: Path):
    made = bundle(str(write_model(tmp_path / "m.onnx", resize="crop")), "deepstream", tmp_path / "kit")
    assert "central squares" in made.notes[0]
    assert "src-crop=528:108:864:864" in (made.path / "README.md").read_text()  # 1080 * 16 / 20 in the middle of 1920


@pytest.mark.parametrize("batch", ["batch", 4])
def test_triton_accepts_its_configuration(tmp_path: Path, batch: int | str):
    grpc = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    made = bundle(str(write_model(tmp_path / "m.onnx", batch=batch)), "triton", tmp_path / "kit", "gate-camera")
    repository = made.path / "model_repository" / "gate-camera"
    config = text_format.Parse((repository / "config.pbtxt").read_text(), grpc.ModelConfig())
    assert config.name == repository.name
    fixed = [4] if batch == 4 else []
    assert config.max_batch_size == (0 if fixed else 16)
    assert list(config.input[0].dims) == [*fixed, 3, SIZE, SIZE]
    assert list(config.output[0].dims) == [*fixed, len(NASTY)]
    assert config.input[0].data_type == grpc.TYPE_FP32
    assert config.HasField("dynamic_batching") != bool(fixed)
    import onnxruntime

    session = onnxruntime.InferenceSession(repository / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [config.input[0].name] == [value.name for value in session.get_inputs()]
    assert [config.output[0].name] == [value.name for value in session.get_outputs()]
    assert len((repository / config.output[0].label_filename).read_text().splitlines()) == len(NASTY)


def test_tritons_client_sends_the_pixels_of_training(tmp_path: Path):
    """Its own few lines of geometry agree with the runtime's, on an image that is not square."""
    import runpy

    from PIL import Image

    picture = np.random.default_rng(3).integers(0, 256, (37, 52, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    for resize in ("crop", "squash"):
        path = write_model(tmp_path / f"{resize}.onnx", resize=resize)
        made = bundle(str(path), "triton", tmp_path / resize, "m")
        sent = runpy.run_path(str(made.path / "client.py"))["pixels"](str(tmp_path / "picture.png"))
        found = probabilities((made.path / "model_repository/m/1/model.onnx").read_bytes(), sent[None])
        assert np.allclose(found[0], Classifier(path)(picture)[0].probabilities, atol=1e-5)


def test_every_kit_has_a_readme_and_nothing_of_class_names_or_this_machine(model: Path, tmp_path: Path):
    for kit in KITS:
        made = bundle(str(model), kit, tmp_path / kit)
        readme = (made.path / "README.md").read_text()
        assert readme.startswith("# b-run-b-one ")
        assert "\n    " in readme, "an indented command"
        for path in (path for path in made.path.rglob("*") if path.is_file() and path.suffix not in (".onnx", ".whl")):
            text = path.read_text()
            assert str(tmp_path) not in text
            assert str(ROOT) not in text
            assert "passwd" not in text or path.name == "labels.txt"
            assert "$name" not in text or path.name == "labels.txt"
        listing = json.loads((made.path / "bundle.json").read_text())
        on_disk = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
        assert set(listing["files"]) == on_disk


def test_the_runtime_wheel_says_what_pyproject_says_and_installs(tmp_path: Path):
    project = (ROOT / "pyproject.toml").read_text()
    for requirement in (*REQUIRES, *(each for needed in EXTRAS.values() for each in needed)):
        assert f'"{requirement}"' in project
    (tmp_path / WHEEL).write_bytes(runtime_wheel())
    assert runtime_wheel() == runtime_wheel()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
               "--disable-pip-version-check", "--target", str(tmp_path / "site"), str(tmp_path / WHEEL)]  # fmt: skip
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import sys, edgeda.runtime as r; print(r.__file__); print({'edgeda.recipe', 'pydantic'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    where, rest = done.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert rest == "set()"


def test_shell_scripts_and_python_templates_parse(model: Path, tmp_path: Path):
    for kit in KITS:
        for path in bundle(str(model), kit, tmp_path / kit).path.iterdir():
            if path.suffix == ".py":
                compile(path.read_text(), path.name, "exec")
            if path.suffix == ".sh":
                assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0


def test_a_model_that_does_not_say_what_it_is_is_refused_by_what_is_missing(command: Edgeda, tmp_path: Path):
    bare = write_model(tmp_path / "bare.onnx", manifest=False)
    for kit in KITS:
        ran = command("bundle", bare, "--for", kit, "--out", tmp_path / "kit")
        assert ran.code == 2
        assert "class names, input size" in ran.error
    assert not (tmp_path / "kit").exists()
    assert "did you mean 'triton'" in command("bundle", bare, "--for", "tritn").error
    assert "no such model" in command("bundle", tmp_path / "none.onnx", "--for", "triton").error
    named = write_model(tmp_path / "m.onnx")
    assert "--name a/b" in command("bundle", named, "--for", "triton", "--name", "a/b").error
    (tmp_path / "half.onnx").write_bytes(named.read_bytes()[:-20])
    assert "truncated or not an ONNX" in command("bundle", tmp_path / "half.onnx", "--for", "python").error


def test_nothing_of_the_users_is_replaced(command: Edgeda, model: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("important")
    ran = command("bundle", model, "--for", "python", "--out", mine, "--overwrite")
    assert ran.code == 2
    assert "not a kit of edgeda" in ran.error
    assert "is a file" in command("bundle", model, "--for", "python", "--out", mine / "notes.txt").error
    kit = tmp_path / "kit"
    ran = command("bundle", model, "--for", "python", "--out", kit, "--json")
    assert ran.code == 0, ran.err
    assert "classify.py" in ran.json["files"]
    assert "--overwrite" in command("bundle", model, "--for", "triton", "--out", kit).error
    (kit / "site").mkdir()
    (kit / "site" / "video.mp4").write_text("mine")
    ran = command("bundle", model, "--for", "triton", "--out", kit, "--overwrite")
    assert "video.mp4 is not part of the kit" in ran.error
    assert (kit / "classify.py").is_file()
    (kit / "site" / "video.mp4").unlink()
    (kit / "model_fp32.engine").write_text("made by TensorRT from the old model")
    assert command("bundle", model, "--for", "triton", "--out", kit, "--overwrite").code == 0
    assert sorted(path.name for path in kit.iterdir()) == ["README.md", "bundle.json", "client.py", "model_repository"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kit", "mine"], "nothing half-written"


def test_a_kit_that_cannot_be_written_leaves_nothing(model: Path, tmp_path: Path, monkeypatch):
    kept = bundle(str(model), "python", tmp_path / "kit")
    before = sorted(path.read_bytes() for path in kept.path.rglob("*") if path.is_file())

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    for out in (tmp_path / "kit", tmp_path / "new"):
        with pytest.raises(InputError, match="the disk is full while writing the kit"):
            bundle(str(model), "triton", out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]
    assert sorted(path.read_bytes() for path in kept.path.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("failing", [("staging",), ("staging", "back")])
def test_stopped_between_its_renames_the_earlier_kit_is_still_there(model: Path, tmp_path: Path, monkeypatch, failing):
    kept = bundle(str(model), "python", tmp_path / "kit")
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if ".part-" in self.name:
            raise KeyboardInterrupt
        if ".old-" in self.name and "back" in failing:
            raise OSError(28, "No space left on device", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(InputError if "back" in failing else KeyboardInterrupt):
        bundle(str(model), "triton", tmp_path / "kit", overwrite=True)
    (left,) = tmp_path.iterdir()
    assert (left / "classify.py").is_file()
    assert (left == kept.path) is ("back" not in failing)


def test_an_engine_is_no_model_for_a_kit(command: Edgeda, tmp_path: Path):
    (tmp_path / "student.engine").write_bytes(b"engine")
    ran = command("bundle", tmp_path / "student.engine", "--for", "python")
    assert ran.code == 2
    assert "bundle the .onnx file" in ran.error


def test_templates_are_found_in_an_installed_package(model: Path, tmp_path: Path):
    """As in a wheel: the package with the templates as its data, and no checkout around it."""
    shutil.copytree(ROOT / "edgeda", tmp_path / "site" / "edgeda", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "export", tmp_path / "site" / "edgeda" / "kits")
    code = f"from edgeda.bundling import bundle; print(bundle({str(model)!r}, 'triton', name='x').path)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": ""})  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.rmtree(done.stdout.strip())
