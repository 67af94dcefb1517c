"""fp16, int8 and raw-pixel exports of a tiny network: what each consumer gets, what it costs, and what is refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeda.artifacts import RunDirectory
from edgeda.errors import InputError
from edgeda.export import Calibration, Options, Request, export_run, qdq
from edgeda.export.budget import Reference, Sensitivity, within
from edgeda.export.builder import Builder
from edgeda.export.calibration import calibrate, entropy_range, minmax_range, percentile_range, run_graph
from edgeda.export.consumers import CONSUMERS, RAW, parse_batch, requests
from edgeda.export.graph import finish, opset_of, to_opset
from edgeda.export.onnx import to_model
from edgeda.export.openvino import write_openvino
from edgeda.export.qat import distil_quantized, fake_quantized
from edgeda.models import Architecture, Network, NetworkCard, build_network, save_network
from edgeda.onnx_pixels import embed_preprocessing
from edgeda.recipe import AugmentRecipe
from edgeda.runtime import Classifier
from edgeda.runtime.backends import OpenVinoBackend, open_backend
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Preprocessing, network_input

PREPROCESSING = Preprocessing(32, "squash", 1.0)
CLASSES = ("a", "b", "c", "d")
Squares = NDArray[np.uint8]


def digits(count: int) -> Squares:
    """Scikit-learn's scanned digits as 32 px squares."""
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[:count] * (255 / 16)).astype(np.uint8)
    return np.repeat(np.kron(pixels, np.ones((1, 4, 4), np.uint8))[..., None], 3, axis=3)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    made, _ = build_network(Architecture("resnet10t", len(CLASSES)))
    with torch.no_grad():
        for _ in range(3):  # batch statistics that are not 0 and 1
            made.train()(torch.from_numpy(network_input(digits(32), PREPROCESSING)))
        made.eval()
        made.head.weight.mul_(50)  # answers far apart
    return made


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Manifest(CLASSES, PREPROCESSING, "resnet10t", "fp32", (1, None), opset=20)


@pytest.fixture(scope="module")
def graph(network: Network, manifest: Manifest) -> onnx.ModelProto:
    return to_model(network, manifest)


@pytest.fixture(scope="module")
def inputs() -> NDArray[np.float32]:
    return network_input(digits(32), PREPROCESSING)


@pytest.fixture(scope="module")
def run(network: Network, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    made = RunDirectory(tmp_path_factory.mktemp("runs") / "tiny")
    made.path.mkdir()
    card = NetworkCard(network.architecture, CLASSES, PREPROCESSING, "student")
    save_network(made.weights(), network.state_dict(), card)
    return made


WANTED = (
    Request(precision="int8", consumer="x86"),
    Request(precision="fp16", consumer="trt-8.6", batch=(1, 4), raw="nhwc"),
    Request(raw="nchw", batch=(2, 2)),
    Request("openvino", "int8", "openvino"),
    Request("openvino", "fp16", "openvino", raw="nhwc"),
)


@pytest.fixture(scope="module")
def exported(run: RunDirectory) -> dict[str, Any]:
    """Five artifacts in one command."""
    return export_run(
        run, digits(24), images_from="digits", wanted=WANTED, calibration=Calibration(digits(32), "digits"),
        options=Options(latency_s=0.01, max_drop=100, calibrator="minmax"), threads=1,
    )  # fmt: skip


def test_every_artifact_has_a_folder_and_the_same_table(run: RunDirectory, exported: dict[str, Any]) -> None:
    assert [one["artifact"] for one in exported["table"]] == ["onnx-fp32", *(one.label for one in WANTED)]
    for artifact, request in zip(exported["artifacts"], WANTED, strict=True):
        path = Path(artifact["path"])
        assert path.parent == run.exports / request.label
        beside = json.loads((path.parent / "manifest.json").read_text())
        assert beside == artifact["manifest"]
        assert beside["checks"] == exported["table"]
        assert (beside["precision"], tuple(beside["batch"])) == (request.precision, request.batch)
        row = next(one for one in exported["table"] if one["artifact"] == request.label)
        assert row["agreement"] >= 90
        assert row["measure"] == "agreement with the fp32 student"
        assert row["drop"] == pytest.approx(100 - row["agreement"], abs=5)  # two batch sizes against one
        assert row["size_mb"] == sum(file.stat().st_size for file in path.parent.glob("student.*")) / 1e6
    assert sorted(one.name for one in run.exports.iterdir()) == sorted(one.label for one in WANTED)


def test_the_table_says_what_really_ran(exported: dict[str, Any]) -> None:
    ran = {one["artifact"]: one["executed"] for one in exported["table"]}
    assert ran["openvino-int8"] == "int8, openvino"
    assert ran["openvino-fp16-raw-nhwc"] == "fp32, openvino"  # weights in half, arithmetic in whole
    assert ran["onnx-int8-x86"] == "int8, onnxruntime"


def test_the_runtime_honours_layout_and_output(run: RunDirectory, exported: dict[str, Any], network: Network) -> None:
    pictures = digits(5)
    with torch.inference_mode():
        logits = network(torch.from_numpy(network_input(pictures, PREPROCESSING))).logits
    expected = logits.softmax(1).numpy()
    for request in WANTED:
        if request.raw is None:
            continue
        made = Classifier(run.exports / request.label if request.format == "openvino" else
                          run.exports / request.label / "student.onnx")  # fmt: skip
        assert made.manifest.output == "probabilities"
        count = 4 if request.batch == (2, 2) else 5
        found = np.stack([one.probabilities for one in made(list(pictures[:count]))])
        np.testing.assert_allclose(found, expected[:count], atol=0.02)


def test_raw_frames_of_the_wrong_kind_are_refused(run: RunDirectory, exported: dict[str, Any]) -> None:
    backend = open_backend(run.exports / WANTED[1].label / "student.onnx")
    with pytest.raises(InputError, match=r"expected images uint8 \(B, 32, 32, 3\)"):
        backend(network_input(digits(1), PREPROCESSING))
    assert backend(digits(7)).shape == (7, len(CLASSES))  # more than its largest batch: in parts


def test_fp16_keeps_fp32_outside(run: RunDirectory, exported: dict[str, Any]) -> None:
    model = onnx.load(run.exports / WANTED[1].label / "student.onnx")
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[2] > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert (opset_of(model), model.ir_version) == (17, 8)


def test_frames_go_straight_into_a_cast(graph: onnx.ModelProto) -> None:
    """TensorRT takes uint8 nowhere else."""
    for layout in RAW.values():
        model = onnx.ModelProto.FromString(graph.SerializeToString())
        embed_preprocessing(model, PREPROCESSING, ("images", "logits"), "images", layout)
        assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]


def test_the_same_export_twice_gives_the_same_bytes(
    run: RunDirectory, exported: dict[str, Any], tmp_path: Path
) -> None:
    wanted = [one for one in WANTED if one.format == "onnx"]
    export_run(
        run, digits(24), images_from="digits", wanted=wanted, calibration=Calibration(digits(32), "digits"),
        options=Options(latency_s=0.01, max_drop=100, calibrator="minmax"), threads=1, out=tmp_path,
    )  # fmt: skip
    for request in wanted:
        first, second = (root / request.label / "student.onnx" for root in (run.exports, tmp_path))
        assert first.read_bytes() == second.read_bytes(), request.label


def test_int8_for_tensorrt_is_signed_symmetric_and_leaves_biases(
    graph: onnx.ModelProto, inputs: NDArray[np.float32], manifest: Manifest
) -> None:
    scheme = qdq.SCHEMES["trt"]
    ranges = calibrate(graph, inputs, qdq.activations(graph, scheme), "percentile")
    model = qdq.quantize(graph, ranges, scheme)
    finish(model, manifest)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type in ("Conv", "Gemm"):
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert constants[makers[node.input[1]].input[1]].shape == (constants[node.input[1][:-12]].shape[0],)
            assert all(constants[name].dtype == np.float32 for name in node.input[2:])
    expected, found = run_graph(graph, inputs), run_graph(model, inputs)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_int8_for_x86_runs_in_integer_kernels(
    graph: onnx.ModelProto, inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    scheme = qdq.SCHEMES["x86"]
    ranges = calibrate(graph, inputs, qdq.activations(graph, scheme), "minmax")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")

    def kernels(kept: list[str]) -> Counter[str]:
        content = qdq.quantize(graph, ranges, scheme, kept).SerializeToString()
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    convolutions = sum(node.op_type == "Conv" for node in graph.graph.node)
    everywhere = kernels([])
    assert (everywhere["QLinearConv"], everywhere["Conv"] + everywhere["FusedConv"]) == (convolutions, 0)
    first = qdq.quantizable(graph)[0]
    assert kernels([first.node])["QLinearConv"] == convolutions - 1
    assert first.name == "backbone.conv1.0"


def test_weights_of_zeros_and_ranges_without_width_stay_finite() -> None:
    assert qdq.channel_scales(np.array([[0.0, 0.0], [1.0, -2.54]]), 0).tolist() == [1.0, np.float32(2.54 / 127)]
    for scheme in qdq.SCHEMES.values():
        assert scheme.parameters(0.0, 0.0)[0] == 1
    scale, zero = qdq.SCHEMES["x86"].parameters(-1.0, 3.0)
    # 255 steps of 4/255 from -1: zero lies 63.75 steps up
    assert (float(scale), int(zero)) == (pytest.approx(4 / 255), 64)
    assert float(qdq.SCHEMES["trt"].parameters(-1.0, 3.0)[0]) == pytest.approx(3 / 127)


def test_calibrators_differ_where_they_should() -> None:
    """Values spread evenly to 1 and one outlier at 100: percentile and entropy cut it off, minmax does not."""
    values = np.append(np.linspace(0, 1, 200_000), 100.0)
    counts, edges = np.histogram(values, bins=2048, range=(0, 100))
    assert minmax_range(counts, edges) == (0, 100)
    low, high = percentile_range(counts, edges)
    assert low == 0
    assert 1 <= high < 1.2
    low, high = entropy_range(counts, edges)
    assert low == 0
    assert high < 10


def test_opset_is_what_was_asked(graph: onnx.ModelProto, inputs: NDArray[np.float32], manifest: Manifest) -> None:
    assert opset_of(graph) == 20
    older = to_opset(graph, CONSUMERS["jetpack-6.0"].opset)
    finish(older, manifest)
    assert opset_of(older) == 17
    np.testing.assert_allclose(run_graph(older, inputs), run_graph(graph, inputs), atol=1e-4)
    strange = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Gelu", ["x"], ["y"])], "g",
            [onnx.helper.make_tensor_value_info("x", 1, [1])], [onnx.helper.make_tensor_value_info("y", 1, [1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )  # fmt: skip
    with pytest.raises(InputError, match="cannot be written in ONNX opset 17"):
        to_opset(strange, 17)


def test_the_budget_keeps_as_few_layers_as_it_needs() -> None:
    ranking = [Sensitivity(name, name, 0.0, db) for name, db in (("a", -30.0), ("b", -5.0), ("c", -20.0), ("d", -40.0))]
    costs = {"a": 0.5, "b": 4.0, "c": 2.0, "d": 0.25}

    def drop(kept: Any) -> float:
        return sum(cost for name, cost in costs.items() if name not in kept)

    assert within(drop, lambda: ranking, 7, "accuracy", "x") == ([], 6.75)
    kept, left = within(drop, lambda: ranking, 3, "accuracy", "x")
    assert ([one.node for one in kept], left) == (["b"], 2.75)
    kept, left = within(drop, lambda: ranking, 1, "accuracy", "x")
    assert ([one.node for one in kept], left) == (["b", "c"], 0.75)


def test_a_budget_that_cannot_be_held_shows_every_layer(
    run: RunDirectory,
    graph: onnx.ModelProto,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeda.export.builder.to_model", lambda network, manifest, opset: to_opset(graph, opset))
    monkeypatch.setattr(Reference, "drop", lambda self, logits: 0.0 if np.array_equal(logits, self.logits) else 7.0)
    monkeypatch.setattr(Builder, "build", _int8_only(Builder.build))
    with (
        caplog.at_level("INFO", logger="edgeda"),
        pytest.raises(InputError, match=r"loses at least 7\.00 points") as told,
    ):
        export_run(
            run, digits(12), images_from="digits", wanted=[WANTED[0]], out=tmp_path / "out",
            calibration=Calibration(digits(16), "digits"), options=Options(latency_s=0.01), threads=1,
        )  # fmt: skip
    assert "\n" not in str(told.value)
    for layer in ("backbone.conv1.0", "backbone.layer4.0.downsample.1", "head"):
        assert layer in caplog.text
    assert list((tmp_path / "out").iterdir()) == []


def _int8_only(build: Any) -> Any:
    """The reference file passes whatever its rounding."""

    def built(self: Builder, request: Request, folder: Path, role: str) -> Any:
        if request.precision == "int8":
            return build(self, request, folder, role)
        allowed = replace(self.options, max_drop=100.0)
        self.options, before = allowed, self.options
        try:
            return build(self, request, folder, role)
        finally:
            self.options = before

    return built


def test_fake_int8_is_nearly_what_the_file_computes(
    network: Network, graph: onnx.ModelProto, inputs: NDArray[np.float32]
) -> None:
    """Training sees the arithmetic that is exported, sums apart, and leaves the network as it was."""
    scheme = qdq.SCHEMES["trt"]
    ranges = calibrate(graph, inputs, qdq.activations(graph, scheme), "minmax")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    layers = qdq.quantizable(graph)
    with fake_quantized(network, layers, ranges, scheme, torch.device("cpu")) as quantizers, torch.inference_mode():
        found = network(torch.from_numpy(inputs)).logits.numpy()
        largest = max(map(abs, ranges["images"]))
        assert quantizers["images"].range == pytest.approx((-largest, largest), rel=1e-5)
    exact, whole = run_graph(qdq.quantize(graph, ranges, scheme), inputs), run_graph(graph, inputs)
    assert np.abs(found - exact).mean() < np.abs(whole - exact).mean()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_teaching_never_ships_worse_than_it_started(network: Network, graph: onnx.ModelProto) -> None:
    """The start counts as an epoch, so the exported file is no further from the teacher than without teaching."""
    scheme = qdq.SCHEMES["trt"]
    squares = digits(64)
    inputs = network_input(squares, PREPROCESSING)
    found = calibrate(graph, inputs, qdq.activations(graph, scheme), "minmax")
    ranges = {name: (10 * low, 10 * high) for name, (low, high) in found.items()}
    wanted = run_graph(graph, inputs)
    taught, learned = distil_quantized(
        network, network, squares, PREPROCESSING, qdq.quantizable(graph), ranges, scheme,
        epochs=2, tau=1.0, augment=AugmentRecipe(), rate=3e-3,
    )  # fmt: skip
    assert set(learned) == {layer.input for layer in qdq.quantizable(graph)}
    manifest = Manifest(CLASSES, PREPROCESSING, "resnet10t", "fp32", (1, None))
    post = run_graph(qdq.quantize(graph, ranges, scheme), inputs)
    after = run_graph(qdq.quantize(to_model(taught, manifest), ranges | learned, scheme), inputs)

    def loss(logits: NDArray[np.float32]) -> float:
        return float(np.square(logits - wanted).mean())

    assert loss(after) <= loss(post)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precisions": "int8"}, "no int8 ONNX suits every consumer; name one with --for (x86, trt"),
        ({"precisions": "fp16", "consumers": "x86"}, "ONNX for x86 has no fp16; it has fp32, int8"),
        ({"precisions": "int8", "consumers": "openvino"}, "for int8 use --openvino"),
        ({"precisions": "bf16"}, "--precision bf16; did you mean 'fp16'?"),
        ({"precisions": ""}, "--precision is empty"),
        ({"consumers": "trt-8.7"}, "--for trt-8.7; did you mean"),
        ({"raw": "hwc"}, "--raw hwc; did you mean 'nhwc'?"),
        ({"batch": "16-1"}, "--batch 16-1 is no batch range"),
        ({"batch": "0-4"}, "within 1 to 1024"),
        ({"batch": "1-100000"}, "within 1 to 1024"),
        ({"batch": "many"}, "--batch many is no batch range"),
    ],
)
def test_what_cannot_be_had_is_said(options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as told:
        requests(**options)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_requests_multiply() -> None:
    found = requests(onnx=True, openvino=True, precisions="fp32,int8", consumers="x86,trt", batch="1-16")
    assert [one.label for one in found] == [
        "onnx-fp32-x86-b1-16", "onnx-int8-x86-b1-16", "onnx-fp32-trt-b1-16", "onnx-int8-trt-b1-16",
        "openvino-fp32-b1-16", "openvino-int8-b1-16",
    ]  # fmt: skip
    assert (parse_batch(None), parse_batch("8"), parse_batch(" 2 - 4 ")) == ((1, None), (8, 8), (2, 4))
    assert [one.label for one in requests()] == [""]


def test_calibration_says_how_many_images_are_wanted(run: RunDirectory, tmp_path: Path) -> None:
    for calibration, words in (
        (
            Calibration(digits(3), "calibration images (few)"),
            r"3 calibration images \(few\) are too few .* 16",
        ),
        (None, "int8 needs calibration images"),
    ):
        with pytest.raises(InputError, match=words):
            export_run(
                run, digits(4), images_from="digits", wanted=[WANTED[0]], out=tmp_path / "o", calibration=calibration
            )
    assert list(tmp_path.iterdir()) == []


def test_manifests_of_unknown_layouts_are_refused(manifest: Manifest) -> None:
    for key, value in (("layout", "float16 CHWN"), ("output", "boxes")):
        with pytest.raises(InputError, match="the model's manifest cannot be read"):
            Manifest.from_dict(manifest.to_dict() | {key: value})


def test_openvino_reports_int8_only_where_it_is(run: RunDirectory, exported: dict[str, Any]) -> None:
    assert OpenVinoBackend(run.exports / "openvino-int8" / "student.xml", threads=1).precision == "int8"
    text = (run.exports / "openvino-int8" / "student.xml").read_text()
    assert str(run.path) not in text
    assert "/tmp" not in text


def test_layers_kept_out_of_int8_are_out_of_it_in_openvino(
    graph: onnx.ModelProto, inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    layers = [layer.node for layer in qdq.quantizable(graph)]
    biased = {node.name for node in graph.graph.node if len(node.input) > 2}
    assert len(biased.intersection(layers)) > 3, "OpenVINO names a layer with a bias otherwise"

    def in_int8(kept: list[str]) -> int:
        path = tmp_path / f"{len(kept)}.xml"
        write_openvino(graph.SerializeToString(), path, "int8", [inputs[at : at + 1] for at in range(16)], kept)
        operations = openvino.Core().read_model(path).get_ops()
        return sum(
            one.get_type_name() == "Constant" and one.get_element_type() == openvino.Type.i8 for one in operations
        )

    handler = logging.NullHandler(logging.INFO)
    logging.getLogger("nncf").addHandler(handler)
    assert in_int8([]) == len(layers)
    assert handler.level == logging.INFO, "the application's own"
    logging.getLogger("nncf").removeHandler(handler)
    assert in_int8([*layers[:2], layers[-1]]) == len(layers) - 3
    with pytest.raises(InputError, match=r"OpenVINO cannot take the network in int8: .*nowhere") as told:
        in_int8(["nowhere"])
    assert "\n" not in str(told.value)
