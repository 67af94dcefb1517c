"""Layers counted by hand, and the lower bounds that follow from them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from edgeda.errors import InputError
from edgeda.models import Architecture, build_network
from edgeda.profiling.complexity import torch_complexity
from edgeda.profiling.layers import Layer, onnx_layers, torch_layers
from edgeda.profiling.onnx_graph import onnx_complexity
from edgeda.profiling.peaks import measure_peaks
from edgeda.profiling.roofline import DEVICES, LABEL, Device, against, estimate, find_devices, this_machine
from edgeda.report.profiles import check_text, estimates_text, layers_text
from tests import tensorrt_files
from tests.onnx_models import SMALL_MACS, small_classifier, weights, write_onnx
from tests.workshop import Attention


def test_layers_of_a_graph_counted_by_hand(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx", [4, 3, 16, 16])
    conv, product = onnx_layers(path)
    assert (conv.kind, conv.macs, conv.params, conv.inputs, conv.activations) == (
        "Conv", 8 * 8 * 8 * 27, 8 * 27 + 8, 3 * 16 * 16, 8 * 8 * 8,
    )  # fmt: skip
    assert (product.kind, product.macs, product.params, product.inputs, product.activations) == ("Gemm", 40, 45, 8, 5)
    assert conv.macs + product.macs == SMALL_MACS == round(onnx_complexity(path).gmacs * 1e9)


def test_layers_of_a_quantized_graph_know_their_type(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w1", "sw", "zw", "s", "z", "b1"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["y", "s", "z"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("DequantizeLinear", ["block.fc.weight", "sf", "zf"], ["wf"]),
        helper.make_node("Gemm", ["features", "wf", "b2"], ["logits"], transB=1),
    ]
    initializers = [
        weights("s"), weights("z", dtype=np.uint8), weights("w1", 8, 3, 3, 3, dtype=np.int8), weights("sw", 8),
        weights("zw", 8, dtype=np.int8), weights("b1", 8, dtype=np.int32), weights("sf"), weights("zf", dtype=np.int8),
        numpy_helper.from_array(np.ones((5, 8), np.int8), "block.fc.weight"), weights("b2", 5),
    ]  # fmt: skip
    conv, product = onnx_layers(write_onnx(tmp_path / "m.onnx", nodes, initializers, ["batch", 3, 8, 8]))
    assert (conv.precision, conv.params, conv.inputs) == ("int8", 8 * 27 + 8, 3 * 64)
    assert (product.name, product.precision, product.params, product.inputs) == ("block.fc", "int8", 45, 8)


def test_weights_that_an_engine_will_quantize_are_int8(tmp_path: Path) -> None:
    """TensorRT's int8 graphs hold them in fp32, behind QuantizeLinear."""
    plain, quantized = (onnx_layers(tensorrt_files.write_onnx(tmp_path / "m.onnx", kind)) for kind in ("fp32", "int8"))
    assert [layer.precision for layer in quantized] == ["int8", "int8"]
    assert quantized == [replace(layer, precision="int8") for layer in plain]
    orin = DEVICES["orin-nano"]
    bounds = [estimate("m", layers, orin)["lower_bound_ms"] for layers in (plain, quantized)]
    assert bounds[0] == pytest.approx(4 * bounds[1])


def test_layers_of_a_network_add_up_to_its_cost_and_fvcore_counts_the_same_activations() -> None:
    network, _ = build_network(Architecture("resnet10t", 7))
    layers = torch_layers(network.eval(), 32)
    cost = torch_complexity(network, 32)
    assert sum(layer.macs for layer in layers) == pytest.approx(cost.gmacs * 1e9)
    assert sum(layer.params for layer in layers) == round(cost.params_m * 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts and traces
        from fvcore.nn import ActivationCountAnalysis

        counted = ActivationCountAnalysis(network, torch.zeros(1, 3, 32, 32)).unsupported_ops_warnings(False).total()
    assert sum(layer.activations for layer in layers if layer.kind in ("Conv2d", "Linear")) == counted
    assert layers[-1].name == "head"
    assert [layer.fused for layer in layers if "BatchNorm" in layer.kind].count(False) == 0


def test_what_a_module_computes_itself_is_a_layer_of_its_own() -> None:
    own, conv = torch_layers(Attention(), 8)
    assert (own.kind, own.macs, own.params) == ("Attention", 2 * 16 * 16 * 4, 0)
    assert (conv.name, conv.macs, conv.params) == ("queries", 16 * 4 * 12, 48)


COMPUTE = Layer("conv", "Conv", macs=10**9, params=0, inputs=10**6, activations=10**6, precision="fp32")
MEMORY = Layer("fc", "Gemm", macs=10**6, params=10**6, inputs=0, activations=0, precision="fp32")
FREE = Layer("bn", "BatchNorm2d", macs=10**9, params=10**6, inputs=10**6, activations=10**6, precision="fp32")
TOY = Device("toy", "Toy", {"fp32": 1.0, "int8": 4.0}, 10.0, "made up")


def test_a_layer_takes_the_longer_of_arithmetic_and_traffic() -> None:
    found = estimate("m", [COMPUTE, FREE, MEMORY], TOY)
    # 2 GFLOP at 1 TFLOP/s are 2 ms; 8 MB at 10 GB/s 0.8 ms. 4 MB are 0.4 ms; 2 MFLOP 0.002 ms.
    assert [(part["name"], part["ms"], part["bound"]) for part in found["layers"]] == [
        ("conv", pytest.approx(2.0), "compute"), ("fc", pytest.approx(0.4), "memory"),
    ]  # fmt: skip
    assert found["lower_bound_ms"] == pytest.approx(2.4)
    assert found["memory_bound_share"] == pytest.approx(0.4 / 2.4)
    assert (found["label"], found["precision"]) == (LABEL, "fp32")
    assert estimate("m", [COMPUTE], TOY, "int8")["lower_bound_ms"] == pytest.approx(0.5)


def test_int8_dense_is_half_of_the_published_sparse_figure() -> None:
    assert DEVICES["orin-nano"].tera_ops == {"int8": 20, "fp16": 10, "bf16": 10, "fp32": 5}
    assert {name: device.bandwidth_gb_s for name, device in DEVICES.items()} == {
        "orin-nano": 68, "orin-nano-super": 102, "orin-nx": 102.4, "agx-orin": 204.8, "thor": 273,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensor_cores", "sparse_int8_a_clock", "ghz"),
    [("orin-nano", 32, 2048, 0.625), ("orin-nano-super", 32, 2048, 1.02), ("orin-nx", 32, 2048, 0.918),
     ("agx-orin", 64, 2048, 1.3), ("thor", 80, 8192, 1.575)],
)  # fmt: skip
def test_peaks_are_cores_times_clock_and_dense(
    name: str, tensor_cores: int, sparse_int8_a_clock: int, ghz: float
) -> None:
    """Of the GPU alone: with the DLAs in it, Orin NX would be 66 % above this product, AGX Orin 61 %."""
    dense = tensor_cores * sparse_int8_a_clock * ghz / 1e3 / 2
    assert DEVICES[name].tera_ops["int8"] == pytest.approx(dense, rel=0.03)
    assert DEVICES[name].tera_ops["fp16"] == pytest.approx(dense / 2, rel=0.03)


def test_unknown_devices_and_precisions() -> None:
    with pytest.raises(InputError, match="did you mean 'orin-nano'"):
        find_devices(["thor", "orin-nan"])
    with pytest.raises(InputError, match="known: orin-nano"):
        find_devices([])
    with pytest.raises(InputError, match="fp16"):
        estimate("m", [COMPUTE], TOY, "fp16")
    with pytest.raises(InputError, match="no layer"):
        estimate("m", [FREE], TOY)


def test_the_error_of_an_estimate() -> None:
    beside = against(4.8, estimate("m", [COMPUTE, MEMORY], TOY))
    assert (beside["ratio"], beside["error_percent"]) == (pytest.approx(2), pytest.approx(-50))
    peaks = {"threads": 2, "fp32_gflops": 1000.0, "int8_gops": None, "bandwidth_gb_s": 10.0}
    assert estimate("m", [COMPUTE, MEMORY], this_machine(peaks))["lower_bound_ms"] == pytest.approx(2.4)
    text = check_text({"peaks": peaks, "rows": [{"engine": "onnxruntime", **beside}]})
    assert "error -50 %, measured is 2.00 x the bound" in text
    assert "int8" not in text


def test_measured_peaks_are_positive_and_finite() -> None:
    peaks = measure_peaks(1, budget_s=0.01)
    assert all(np.isfinite(peaks[name]) and peaks[name] > 0 for name in ("fp32_gflops", "int8_gops", "bandwidth_gb_s"))


def test_what_is_printed_is_labelled_and_names_its_sources() -> None:
    text = estimates_text([estimate("m", [COMPUTE], device) for device in find_devices(["thor", "orin-nx"])])
    assert text.count(LABEL) >= 3
    assert "Jetson Orin NX 16GB: NVIDIA's module data, GPU alone: 60 sparse int8 TOPS" in text


def test_the_bars_are_as_long_as_the_shares() -> None:
    lines = layers_text("m", [layer.to_dict() for layer in (COMPUTE, MEMORY)]).split("\n")
    bars = [line.count("█") for line in lines]
    assert sorted(bars)[-2:] == [1, 24]
    many = [Layer(f"l{at}", "Conv", 100, 0, 0, 0, "fp32").to_dict() for at in range(30)]
    assert layers_text("m", many).endswith(
        "and 10 smaller layers with 33.3 % of the arithmetic (all of them with --json)"
    )
