"""Exporting a tiny run: the file says what the network says, and nothing about this machine."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import linecache
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import edgeda.export.builder
from edgeda.artifacts import RunDirectory
from edgeda.errors import InputError
from edgeda.export import PARITY_LIMIT, export_run
from edgeda.export.onnx import export_onnx, replacing, to_model
from edgeda.export.parity import accuracy, compare
from edgeda.models import Architecture, Network, NetworkCard, build_network, load_network, save_network
from edgeda.runtime import Classifier
from edgeda.runtime.backends import OnnxRuntimeBackend, OpenVinoBackend
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Preprocessing, network_input, square_pixels
from edgeda.torch_backend import TorchBackend

PREPROCESSING = Preprocessing(size=32)
CLASSES = ("temple", "flower", "grüße")
SIDE = 61
"""Of a patch of a photograph, in pixels; not the side that the network takes."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Exported:
    run: RunDirectory
    network: Network
    patches: list[Pixels]
    squares: Pixels
    labels: NDArray[np.int64]
    result: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.run.exports / "student.onnx"

    @property
    def manifest(self) -> Manifest:
        return Manifest.from_dict(self.result["manifest"])


def photographs() -> tuple[list[Pixels], NDArray[np.int64]]:
    """Seven patches along the diagonal of each of scikit-learn's two photographs."""
    patches = [
        np.ascontiguousarray(photograph[at : at + SIDE, at : at + SIDE])
        for photograph in load_sample_images().images
        for at in range(0, 7 * SIDE, SIDE)
    ]
    return patches, np.repeat(np.arange(2), len(patches) // 2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "tiny")
    run.path.mkdir()
    network, _ = build_network(Architecture("resnet10t", len(CLASSES), bottleneck=8))
    patches, labels = photographs()
    squares = np.stack([square_pixels(patch, PREPROCESSING) for patch in patches])
    with torch.no_grad():  # batch statistics that are not 0 and 1
        network.train()(torch.from_numpy(network_input(squares, PREPROCESSING)))
    save_network(
        run.weights(), network.state_dict(), NetworkCard(network.architecture, CLASSES, PREPROCESSING, "student")
    )
    result = export_run(run, squares, images_from="scikit-learn photographs", labels=labels, gmacs=0.25)
    return Exported(run, network.eval(), patches, squares, labels, result)


@pytest.fixture(scope="module")
def torch_logits(exported: Exported) -> NDArray[np.float64]:
    """In float64, with no code of edgeda's but the network: rounding on either side shows."""
    network, _ = load_network(exported.run.weights())
    with torch.inference_mode():
        inputs = torch.from_numpy(network_input(exported.squares, PREPROCESSING)).double()
        return np.asarray(network.double()(inputs).logits.numpy())


@pytest.mark.parametrize("batch", [1, 7])
def test_plain_onnxruntime_says_the_same(exported: Exported, torch_logits: NDArray[np.float64], batch: int) -> None:
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    described = json.loads(session.get_modelmeta().custom_metadata_map["edgeda"])
    size, steps = described["preprocessing"]["size"], described["preprocessing"]
    offset = (exported.squares.shape[1] - size) // 2
    pixels = exported.squares[:, offset : offset + size, offset : offset + size] / 255
    images = ((pixels - steps["mean"]) / steps["std"]).transpose(0, 3, 1, 2).astype(np.float32)
    parts = [session.run(["logits"], {"images": images[at : at + batch]})[0] for at in range(0, len(images), batch)]
    assert np.abs(np.concatenate(parts) - torch_logits).max() <= 1e-4


def test_openvino_says_the_same(exported: Exported, torch_logits: NDArray[np.float64]) -> None:
    backend = OpenVinoBackend(exported.path, threads=2)
    assert backend.precision == "fp32"
    assert backend.manifest is not None
    assert backend.manifest.classes == CLASSES
    logits = backend(network_input(exported.squares, PREPROCESSING))
    assert np.abs(logits - torch_logits).max() <= 1e-3


def test_the_same_network_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    exported.network.train()  # what the caller left it in must not matter, nor be changed
    again = export_onnx(exported.network, exported.manifest, tmp_path / "again.onnx")
    assert exported.network.training
    assert (tmp_path / "again.onnx").read_bytes() == exported.path.read_bytes()
    assert again.opset == 20
    assert os.listdir(tmp_path) == ["again.onnx"]


def test_the_file_holds_nothing_of_this_machine(exported: Exported) -> None:
    whole = exported.path.read_bytes()
    for place in (os.getcwd(), os.path.expanduser("~"), sys.prefix, str(exported.run.path), "/site-packages"):
        assert place.encode() not in whole
    model = onnx.load(exported.path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # three letters turn up in megabytes of weights by chance
    words = model.SerializeToString()
    for word in (b".py", b"stack_trace", b"torch.nn", b"File "):
        assert word not in words
    assert [entry.key for entry in model.metadata_props] == ["edgeda", "names"]


def test_the_graph_is_portable(exported: Exported) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    (images,), (logits,) = model.graph.input, model.graph.output
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (images, logits)
    ]
    assert (images.name, logits.name) == ("images", "logits")
    assert shapes == [["batch", 3, 32, 32], ["batch", len(CLASSES)]]
    assert {entry.domain for entry in model.opset_import} == {""}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert json.loads(model.metadata_props[1].value) == dict(zip("012", CLASSES, strict=True))


def test_the_manifest_tells_of_the_file(exported: Exported, torch_logits: NDArray[np.float64]) -> None:
    inside = OnnxRuntimeBackend(exported.path).manifest
    beside = json.loads((exported.run.exports / "manifest.json").read_text(encoding="utf-8"))
    whole = exported.path.read_bytes()
    correct = 100 * float((torch_logits.argmax(1) == exported.labels).mean())
    assert inside is not None
    assert inside.embedded() == exported.manifest.embedded()
    assert beside == exported.result["manifest"]
    assert beside["sha256"] == hashlib.sha256(whole).hexdigest()
    assert beside["size_mb"] == len(whole) / 1e6
    assert (beside["opset"], beside["precision"], beside["batch"]) == (20, "fp32", [1, None])
    assert (beside["classes"], beside["source_run"], beside["architecture"]) == (list(CLASSES), "tiny", "resnet10t")
    assert beside["gmacs"] == 0.25
    assert beside["params_m"] == sum(value.numel() for value in exported.network.parameters()) / 1e6
    assert set(beside["tools"]) == {"edgeda", "torch", "onnx"}
    assert 0 <= beside["parity"]["max_abs_error"] <= PARITY_LIMIT
    assert beside["parity"]["agreement"] == 100
    assert (beside["parity"]["images"], beside["parity"]["batches"]) == (len(exported.squares), [1, 7])
    assert beside["accuracy"]["torch"] == beside["accuracy"]["exported"] == correct


def test_classifier_is_the_softmax_of_torch(exported: Exported, torch_logits: NDArray[np.float64]) -> None:
    predictions = Classifier(exported.path, threads=2)(exported.patches)
    expected = torch.from_numpy(torch_logits).softmax(1).numpy()
    np.testing.assert_allclose(np.stack([one.probabilities for one in predictions]), expected, atol=1e-5)
    assert [one.label for one in predictions] == [CLASSES[best] for best in expected.argmax(1)]


def pretend_export(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the seconds of torch's exporter where it is not what is tested."""

    def loaded(network: Network, manifest: Manifest, opset: int) -> onnx.ModelProto:
        assert opset == 20
        return onnx.load(exported.path)

    monkeypatch.setattr(edgeda.export.builder, "to_model", loaded)


def test_a_file_that_differs_is_never_put_in_place(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnnxRuntimeBackend):
        def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            return super()._run(batch) + np.float32(2e-3)

    pretend_export(exported, monkeypatch)
    monkeypatch.setattr(edgeda.export.builder, "OnnxRuntimeBackend", Wrong)
    with pytest.raises(InputError, match=r"differs from the network by 2\.0e-03"):
        export_run(exported.run, exported.squares, images_from="photographs", out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_only_the_runs_own_export_is_replaced(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_export(exported, monkeypatch)

    def export(run: RunDirectory = exported.run, **options: Any) -> dict[str, Any]:
        return export_run(run, exported.squares, images_from="photographs", out=tmp_path / "out", **options)

    assert not export()["replaced"]
    assert export()["replaced"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["accuracy"] is None
    other = RunDirectory(tmp_path / "other")
    other.path.mkdir()
    other.weights().write_bytes(exported.run.weights().read_bytes())
    with pytest.raises(InputError, match="the export of another run, 'tiny'"):
        export(other)
    mine = tmp_path / "out" / "student.onnx"
    mine.write_bytes(b"my own file")
    with pytest.raises(InputError, match="is not an edgeda export"):
        export()
    assert mine.read_bytes() == b"my own file"
    mine.unlink()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a browser extension"}')
    with pytest.raises(InputError, match=r"manifest\.json is not an edgeda export"):
        export()
    assert export(overwrite=True)["manifest"]["source_run"] == "tiny"


def test_images_and_labels_are_checked_before_the_export(exported: Exported, tmp_path: Path) -> None:
    squares, labels = exported.squares, exported.labels
    for images, given, words in (
        (squares[:, :32, :32], labels, r"expected images uint8 \(N, 37, 37, 3\)"),
        (squares[:0], None, r"got uint8 \(0, 37, 37, 3\)"),
        (squares, labels[1:], "expected 14 whole-number labels"),
        (squares, labels + 2, "labels must be 0 to 2, got 2 to 3"),
    ):
        with pytest.raises(InputError, match=words):
            export_run(exported.run, images, images_from="photographs", labels=given, out=tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        export_run(RunDirectory(tmp_path), squares, images_from="photographs")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="while making the export folder"):
        export_run(exported.run, exported.squares, images_from="photographs", out=tmp_path / "taken" / "deeper")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fill_the_disk() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="the disk is full while writing kept"):
        fill_the_disk()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("kept", "old")]


class Fixed:
    """A backend that answers from a table: row i for the image whose every value is i."""

    name, precision, manifest, input_shape = "table", "fp32", None, (3, 2, 2)

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = np.array(rows, np.float32)
        self.seen: list[int] = []

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.seen.append(len(batch))
        return np.asarray(self.rows[batch[:, 0, 0, 0].astype(int)])


def test_parity_by_hand() -> None:
    inputs = np.broadcast_to(np.arange(3, dtype=np.float32)[:, None, None, None], (3, 3, 2, 2))
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], np.float32)
    candidate = Fixed([[1.0, 0.0], [0.0, 0.75], [0.25, 0.5]])
    parity = compare(reference, candidate, inputs, batches=(1, 2))
    # errors of the six logits: 0, 0, 0, 1/4, 1/4, 1/2; the third image changes its class
    assert (parity.max_abs_error, parity.mean_abs_error) == (0.5, pytest.approx(1 / 6))
    assert parity.agreement == pytest.approx(200 / 3)
    assert candidate.seen == [1, 1, 1, 2, 2]  # the last batch of two is filled up
    np.testing.assert_array_equal(parity.candidate_logits, candidate.rows)
    assert parity.to_dict()["images"] == 3
    assert accuracy(parity.candidate_logits, np.array([0, 1, 0])) == pytest.approx(200 / 3)


def test_parity_refuses_what_cannot_be_compared() -> None:
    inputs = np.zeros((2, 3, 2, 2), np.float32)
    good = np.array([[1.0, 2.0], [1.0, 2.0]], np.float32)
    with pytest.raises(InputError, match="not finite for 2 of 2 images"):
        compare(good, Fixed([[np.nan, 0.0]]), inputs, (1, 7))
    with pytest.raises(InputError, match="not the same model"):
        compare(good, Fixed([[1.0, 2.0, 3.0]]), inputs, (1, 7))


def test_torch_backend_leaves_the_network_alone(exported: Exported, torch_logits: NDArray[np.float64]) -> None:
    network = exported.network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    backend = TorchBackend(network, exported.manifest)
    inputs = network_input(exported.squares, PREPROCESSING)
    assert np.abs(backend(inputs) - torch_logits).max() <= 1e-4
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(InputError, match=r"expected images float32 \(B, 3, 32, 32\)"):
        backend(inputs[:, :, :16])
    with pytest.raises(InputError, match="does not tell its input size"):
        TorchBackend(network, None)
    assert TorchBackend(network, None, input_size=64).input_shape == (3, 64, 64)


def test_exports_keep_neither_shapes_nor_source_texts(exported: Exported):
    """A process that exports again and again must not grow by a ShapeEnv, with all its tensors, each time.

    Nor by the twenty texts or so that torch.fx writes an export into a list that nothing empties.
    """

    def alive() -> int:
        for _ in range(3):  # what one collection frees lets go of what the next one finds
            gc.collect()
        return sum(issubclass(type(thing), ShapeEnv) for thing in gc.get_objects())

    before = alive()  # the export of the fixture is behind us
    texts = set(linecache.cache), len(torch.fx.graph_module._loader.eval_cache)
    for _ in range(2):
        to_model(exported.network, exported.manifest)
    assert alive() <= before + 1  # the last one may still be held; each of them was, once
    written = {name for name in set(linecache.cache) - texts[0] if "eval_with_key" in name}
    assert not written
    assert len(torch.fx.graph_module._loader.eval_cache) == texts[1]


def test_an_export_is_timed_on_as_many_threads_as_a_profile(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime by itself knows nothing of OMP_NUM_THREADS, which profile and compare go by."""

    class Found(Exception):
        pass

    def builder(*arguments: object) -> None:
        raise Found(arguments[-1])

    monkeypatch.setattr(edgeda.export, "Builder", builder)
    for asked, given in (("1", None), ("1", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        with pytest.raises(Found) as found:
            export_run(exported.run, exported.squares, images_from="photographs", labels=None, threads=given)
        assert found.value.args == (given or 1,)
