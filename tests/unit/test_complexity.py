"""Arithmetic and parameters of networks and graphs, against counts made by hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from edgeda.errors import InputError
from edgeda.models import Architecture, LogitsOnly, build_network
from edgeda.profiling.complexity import torch_complexity
from edgeda.profiling.onnx_graph import onnx_complexity
from tests.onnx_models import SMALL_MACS, SMALL_PARAMETERS, small_classifier, weights, write_onnx
from tests.workshop import Attention


@pytest.mark.parametrize(("name", "gmacs", "params_m"), [("r18", 1.819, 11.690), ("r50", 4.112, 25.557)])
def test_the_figures_of_the_papers(name: str, gmacs: float, params_m: float) -> None:
    network, _ = build_network(Architecture(name, 1000))
    network.head.eval()
    found = torch_complexity(network, 224)
    assert (found.gmacs, found.params_m) == (pytest.approx(gmacs, abs=6e-4), pytest.approx(params_m, abs=6e-4))
    assert found.gflops == 2 * found.gmacs
    assert (network.training, network.head.training) == (True, False)


def test_fused_attention_is_counted() -> None:
    found = torch_complexity(Attention(), 8)  # 16 tokens of width 4
    assert round(found.gmacs * 1e9) == 16 * 4 * 12 + 2 * 16 * 16 * 4
    assert round(found.params_m * 1e6) == 48


def test_an_input_the_network_does_not_take() -> None:
    with pytest.raises(InputError, match="4 x 4"):
        torch_complexity(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), 4)


def test_onnx_count_of_a_small_classifier_is_per_image(tmp_path: Path) -> None:
    for images in (["batch", 3, 16, 16], [4, 3, 16, 16], [None, 3, 16, 16]):
        found = onnx_complexity(small_classifier(tmp_path / "m.onnx", images))
        assert round(found.gmacs * 1e9) == SMALL_MACS
        assert round(found.params_m * 1e6) == SMALL_PARAMETERS
        assert found.gflops == 2 * found.gmacs


def test_onnx_count_of_an_open_size_needs_the_size(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "m.onnx", ["batch", 3, "height", "width"])
    assert round(onnx_complexity(path, 16).gmacs * 1e9) == SMALL_MACS
    with pytest.raises(InputError, match="dimension 2"):
        onnx_complexity(path)


def test_onnx_count_of_groups_transposed_convolution_and_products(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["images", "depthwise"], ["a"], group=6, pads=[1, 1, 1, 1]),  # 6 x 8 x 8
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        helper.make_node("ConvTranspose", ["b", "up"], ["c"], group=2, strides=[2, 2]),  # 8 x 16 x 16
        helper.make_node("Reshape", ["c", "shape"], ["d"]),  # 8 x 256
        helper.make_node("MatMul", ["d", "product"], ["logits"]),  # 8 x 5
    ]
    initializers = [
        weights("depthwise", 6, 1, 3, 3),
        *(weights(name, 6) for name in ("scale", "shift", "mean", "variance")),
        weights("up", 6, 4, 2, 2),
        numpy_helper.from_array(np.array([-1, 8, 256], np.int64), "shape"),
        weights("product", 256, 5),
    ]
    found = onnx_complexity(write_onnx(tmp_path / "m.onnx", nodes, initializers, ["batch", 6, 8, 8], ["batch", 8, 5]))
    assert round(found.gmacs * 1e9) == 6 * 64 * 9 + 6 * 64 * (4 * 2 * 2) + 8 * 5 * 256
    assert round(found.params_m * 1e6) == 54 + 6 + 6 + 96 + 1280  # without running statistics and the shape


def test_quantized_graphs_count_like_the_float_one(tmp_path: Path) -> None:
    tail = [
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w2", "b2"], ["logits"], transB=1),
    ]
    quantized = helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"])
    geometry = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    qdq = [
        quantized,
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["w1", "sw", "zw"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["b1", "sw"], ["b"], axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["maps"], **geometry),
    ]
    qlinear = [
        quantized,
        helper.make_node("QLinearConv", ["q", "s", "z", "w1", "sw", "zw", "s", "z", "b1"], ["y"], **geometry),
        helper.make_node("DequantizeLinear", ["y", "s", "z"], ["maps"]),
    ]
    initializers = [
        weights("s"),
        weights("z", dtype=np.uint8),
        weights("w1", 8, 3, 3, 3, dtype=np.int8),
        weights("sw", 8),
        weights("zw", 8, dtype=np.int8),
        weights("b1", 8, dtype=np.int32),
        weights("w2", 5, 8),
        weights("b2", 5),
    ]
    for head in (qdq, qlinear):
        path = write_onnx(tmp_path / "m.onnx", [*head, *tail], initializers, ["batch", 3, 16, 16])
        found = onnx_complexity(path)
        assert round(found.gmacs * 1e9) == SMALL_MACS
        assert round(found.params_m * 1e6) == SMALL_PARAMETERS


def test_onnx_and_fvcore_agree_on_resnet18(tmp_path: Path) -> None:
    network, _ = build_network(Architecture("r18", 31))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm starts some at zero, and equal weights are stored once
            nn.init.uniform_(module.weight)
    path = tmp_path / "r18.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(LogitsOnly(network).eval(), (torch.zeros(1, 3, 64, 64),), path, dynamo=False)
    from_graph, from_torch = onnx_complexity(path), torch_complexity(network, 64)
    assert from_graph.gmacs == pytest.approx(from_torch.gmacs, rel=0.01)
    assert from_graph.params_m == pytest.approx(from_torch.params_m, rel=0.01)


@pytest.mark.parametrize("content", [b"", b"not an onnx file at all", b"\x08\x08", None])
def test_foreign_and_truncated_files(tmp_path: Path, content: bytes | None) -> None:
    path = small_classifier(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(InputError, match=r"m\.onnx"):
        onnx_complexity(path)


def test_a_missing_file_and_a_graph_with_two_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.onnx"):
        onnx_complexity(tmp_path / "gone.onnx")
    nodes = [helper.make_node("Gemm", ["images", "w"], ["logits"])]
    path = write_onnx(tmp_path / "m.onnx", nodes, [weights("w", 3, 5)], ["batch", 3])
    with pytest.raises(InputError, match="no image classifier"):
        onnx_complexity(path)
