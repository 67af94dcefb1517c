"""`edgeda export --trt` and `--trt-rtx`: real engines by TensorRT for RTX, kits for devices, and a device over ssh."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeda.errors import InputError, MachineError
from edgeda.export.consumers import RAW
from edgeda.export.engine_builder import gpu
from edgeda.export.graph import finish
from edgeda.export.tensorrt import EngineOptions, export_engine
from edgeda.onnx_pixels import embed_preprocessing
from edgeda.runtime.manifest import PROBABILITIES
from tests.conftest import Edgeda
from tests.sshd import Sshd, running_sshd
from tests.tensorrt_files import COMPUTE_LAYERS, manifest, write_onnx

needs_rtx = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('tensorrt_rtx')", reason="no tensorrt-rtx"
)
no_gpu = pytest.mark.skipif(gpu() is not None, reason="this machine has an NVIDIA GPU")


@pytest.fixture(scope="module")
def exported(edgeda: Edgeda, run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's student as the command exports it."""
    out = tmp_path_factory.mktemp("exported")
    ran = edgeda("export", run_directory, "--out", out, "--trt-rtx", "--json")
    assert ran.code == 0, ran.err
    folder = out / "onnx-fp32-trt"
    (folder / "said.json").write_text(ran.out)
    return folder


@needs_rtx
def test_the_command_builds_a_real_fp32_engine(exported: Path) -> None:
    said = json.loads((exported / "said.json").read_text())
    (engine,) = said["engines"]
    assert Path(engine["path"]) == exported / "student.rtx.engine"
    built = engine["manifest"]["engine"]
    assert built["package"] == "tensorrt_rtx"
    assert set(built["compute_layers"]) == {"fp32"}
    assert built["compute_layers"]["fp32"] >= 10  # the convolutions of a test_resnet
    assert set(built["layers"]) == {"FLOAT"}
    assert engine["manifest"]["classes"] == ["0", "1", "2", "3"]
    assert (exported / "student.rtx.engine").stat().st_size / 1e6 == pytest.approx(engine["manifest"]["size_mb"])


@needs_rtx
def test_the_student_in_int8_and_fp16_has_no_layer_left_behind(exported: Path, tmp_path: Path) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.transformers.float16 import convert_float_to_float16

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [np.random.default_rng(seed).normal(size=(2, 3, 32, 32)).astype("f4") for seed in range(3)]

        def get_next(self) -> dict | None:
            return {"images": self.left.pop()} if self.left else None

    built = json.loads((exported / "student.rtx.engine.json").read_text())["engine"]["compute_layers"]
    half = convert_float_to_float16(onnx.load(exported / "student.onnx"), keep_io_types=True)
    (tmp_path / "half.onnx").write_bytes(half.SerializeToString())
    quantize_static(
        exported / "student.onnx", tmp_path / "quantized.onnx", Reader(), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip
    for name, precision in (("half", "fp16"), ("quantized", "int8")):
        engine = export_engine(tmp_path / f"{name}.onnx", rtx=True)["manifest"]["engine"]
        assert engine["compute_layers"] == {precision: built["fp32"]}
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "half.rtx.engine", exported / "student.rtx.engine")}
    assert sizes["half.rtx.engine"] < 0.7 * sizes["student.rtx.engine"]


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tiny_engines_are_really_built_in_each_precision(precision: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "student.onnx", precision)
    result = export_engine(path, EngineOptions(batch=(1, 2, 16), workspace_mb=64), rtx=True)
    built = result["manifest"]["engine"]
    assert built["compute_layers"] == {precision: COMPUTE_LAYERS}
    kinds = {"fp32": {"FLOAT"}, "fp16": {"HALF", "FLOAT"}, "int8": {"INT8", "FLOAT"}}[precision]
    assert set(built["layers"]) - {"INT64"} == kinds  # INT64: arithmetic with shapes
    assert (built["typing"], built["batch"], built["gpu"]) == ("strong", [1, 2, 16], None)
    again = export_engine(path, rtx=True)
    assert again["manifest"]["engine"]["batch"] == [1, 1, 8]


@needs_rtx
@pytest.mark.parametrize("raw", RAW)
def test_engines_that_take_frames_are_really_built(raw: str, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(write_onnx(tmp_path / "student.onnx"))
    says = replace(manifest(), layout=RAW[raw], output_name=PROBABILITIES, output=PROBABILITIES)
    embed_preprocessing(model, says.preprocessing, ("images", "logits"), "images", says.layout)
    (tmp_path / "student.onnx").write_bytes(finish(model, says))
    built = export_engine(tmp_path / "student.onnx", rtx=True)["manifest"]
    assert built["engine"]["compute_layers"] == {"fp32": COMPUTE_LAYERS}
    assert built["layout"] == RAW[raw]


@needs_rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions(batch=(0, 1, 2)), "batch 0,1,2: three rising numbers from 1"),
        (EngineOptions(batch=(1, 4, 2)), "three rising numbers"),
        (EngineOptions(batch=(1, 4, 9)), r"batch 1,4,9: student.onnx takes batches from 1 to 8"),
        (EngineOptions(workspace_mb=0), "--workspace-mb must be at least 1"),
        (EngineOptions(dla_core=-1), "--dla is the number of a core from 0"),
        (EngineOptions(dla_core=0), "--dla is for --trt; TensorRT for RTX has none"),
        (EngineOptions(timing_cache=Path("/nowhere/x")), "--timing-cache: no such folder"),
        (EngineOptions(version_compatible=True), "--version-compatible is for --trt"),
    ],
)
def test_options_that_make_no_sense(options: EngineOptions, message: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "student.onnx", says=manifest(batch=(1, 8)))
    with pytest.raises(InputError, match=message):
        export_engine(path, options, rtx=True)
    assert [found.name for found in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantized": np.uint8}, "is quantized to uint8, which TensorRT reads as int8 without a word"),
        ({"zero_point": 3}, "is quantized with zero points other than 0"),
    ],
)
def test_a_file_quantized_for_another_engine_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "student.onnx", "int8", **changes)
    with pytest.raises(InputError, match=f"{message}.*; export it for TensorRT with: edgeda export"):
        export_engine(path, rtx=True)


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(write_onnx(tmp_path / "whole.onnx").read_bytes()[:300])
    with pytest.raises(InputError, match="truncated or not an ONNX model"):
        export_engine(tmp_path / "broken.onnx", rtx=True)
    import onnx

    model = onnx.load(tmp_path / "whole.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match="carries no edgeda manifest"):
        export_engine(tmp_path / "foreign.onnx", rtx=True)


@needs_rtx
def test_an_engine_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "student.onnx")
    (tmp_path / "student.rtx.engine").write_text("mine")
    with pytest.raises(InputError, match="is not an engine of edgeda's and is not overwritten"):
        export_engine(path, rtx=True)
    assert (tmp_path / "student.rtx.engine").read_text() == "mine"
    export_engine(path, rtx=True, overwrite=True)
    assert (tmp_path / "student.rtx.engine").read_bytes() != b"mine"


@no_gpu
def test_without_a_gpu_the_kit_is_written_and_the_exit_code_is_3(
    command: Edgeda, run_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kit" / "onnx-fp32-trt"
    ran = command("export", run_directory, "--trt", "--workspace-mb", 512, "--out", out.parent, "--json")
    assert ran.code == 3
    assert (ran.json["path"], ran.json["engines"]) == (str(out / "student.onnx"), [])
    assert ran.error.startswith("error: no NVIDIA GPU here, so no engine was built; build it on the device: --device")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["build_engine.json", "build_engine.py", "build_engine.sh", "manifest.json", "student.onnx"]
    request = json.loads((out / "build_engine.json").read_text())
    assert (request["engine"], request["workspace_mb"], request["precision"]) == ("student.engine", 512, "fp32")
    (out / "build_engine.py").write_text("print('mine')\n")
    ran = command("export", run_directory, "--trt", "--out", out.parent)
    assert ran.code == 2
    assert "build_engine.py is not edgeda's and is not overwritten" in ran.error


def test_a_dla_is_for_one_batch_size(command: Edgeda, run_directory: Path, tmp_path: Path) -> None:
    """TensorRT would only warn, and leave every layer to the GPU."""
    out = tmp_path / "out"
    for batch in ([], ["--batch", "1-4"]):
        ran = command("export", run_directory, "--trt", "--precision", "fp16", "--dla", "0", "--out", out, *batch)
        assert ran.code == 2
        assert ran.error == "error: --dla: a DLA takes one batch size only; add --batch 1"
    assert not out.exists()
    path = write_onnx(tmp_path / "student.onnx", "fp16")
    with pytest.raises(InputError, match="a DLA takes one batch size only"):
        export_engine(path, EngineOptions(dla_core=0))
    assert [found.name for found in tmp_path.iterdir()] == ["student.onnx"]
    if gpu() is None:
        with pytest.raises(MachineError, match="no NVIDIA GPU here"):
            export_engine(path, EngineOptions(dla_core=0, batch=(4, 4, 4)))
        assert json.loads((tmp_path / "build_engine.json").read_text())["batch"] == [4, 4, 4]


def test_options_of_an_engine_without_an_engine(command: Edgeda, run_directory: Path) -> None:
    for option in (["--device", "ssh://nvidia@orin"], ["--dla", "0"], ["--version-compatible"]):
        ran = command("export", run_directory, "--onnx", *option)
        assert ran.code == 2
        assert f"{option[0]} is for --trt" in ran.error
    ran = command("export", run_directory, "--trt", "--device", "orin")
    assert ran.code == 2
    assert "'orin' is no device" in ran.error


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """This machine over ssh, its python3 with TensorRT for RTX standing in for TensorRT."""
    root = tmp_path_factory.mktemp("device")
    packages = root / "packages"
    packages.mkdir()
    stand_in = "import sys, tensorrt_rtx\nsys.modules[__name__] = tensorrt_rtx\n"
    (packages / "tensorrt.py").write_text(stand_in)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    with running_sshd(root, {"PYTHONPATH": str(packages), "PATH": path}) as server:
        yield server


@needs_rtx
def test_a_device_builds_the_engine_and_gives_it_back(
    device: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDA_SSH_OPTIONS", device.environment["EDGEDA_SSH_OPTIONS"])
    path = write_onnx(tmp_path / "student.onnx", "int8")
    result = export_engine(path, device=device.url)
    assert result["path"] == str(tmp_path / "student.engine")
    assert result["manifest"]["engine"]["compute_layers"] == {"int8": COMPUTE_LAYERS}
    assert result["manifest"]["engine"]["package"] == "tensorrt"
    assert result["manifest"]["source_run"] == "demo"
    assert device.leftovers() == []


def test_what_goes_wrong_on_the_device_is_one_line_that_names_it(
    device: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDA_SSH_OPTIONS", device.environment["EDGEDA_SSH_OPTIONS"])
    path = write_onnx(tmp_path / "student.onnx")
    (device.folder / "packages" / "tensorrt.py").rename(device.folder / "packages" / "hidden")
    try:
        with pytest.raises(MachineError, match=r"@127.0.0.1:\d+: tensorrt cannot be imported: No module named"):
            export_engine(path, device=device.url)
    finally:
        (device.folder / "packages" / "hidden").rename(device.folder / "packages" / "tensorrt.py")
    assert not (tmp_path / "student.engine").exists()
    assert device.leftovers() == []
