"""`edgeda export` in several precisions on a finished run, and what it refuses, as a user sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.conftest import Edgeda, Folders

pytest.importorskip("onnxruntime", reason="exports are checked in ONNX Runtime")


def test_int8_is_judged_by_accuracy_where_labels_are(
    command: Edgeda, run_directory: Path, folders: Folders, tmp_path: Path
) -> None:
    ran = command(
        "export", run_directory, "--precision", "int8", "--for", "x86", "--calibration", folders.target,
        "--max-drop", 100, "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    quantization = ran.json["manifest"]["quantization"]
    assert (quantization["measure"], quantization["images"]) == ("accuracy", 32)
    plain, quantized = ran.json["table"]
    assert plain["accuracy"] - quantized["accuracy"] == pytest.approx(quantization["drop"])
    found = command("evaluate", ran.json["path"], "--data", folders.target_test, "--json").json
    assert found["accuracy"] == pytest.approx(quantized["accuracy"], abs=0.01)
    assert str(folders.target) not in Path(ran.json["manifest_path"]).read_text()


def test_two_roles_do_not_share_a_manifest(command: Edgeda, run_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("export", run_directory, "--out", out).code == 0
    before = (out / "manifest.json").read_bytes()
    ran = command("export", run_directory, "--role", "teacher", "--out", out)
    assert ran.code == 2
    assert f"{out / 'student.onnx'} lies there, and a folder has one manifest.json" in ran.error
    assert [path.read_bytes() for path in sorted(out.glob("*.json"))] == [before]
    assert command("export", run_directory, "--role", "teacher", "--out", out, "--overwrite").code == 0


def test_teaching_is_recorded(command: Edgeda, run_directory: Path, tmp_path: Path) -> None:
    ran = command("export", run_directory, "--precision", "int8", "--for", "trt", "--qat", 1, "--max-drop", 100,
                  "--out", tmp_path / "out")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "taught for 1 epoch on 32 images" in ran.out
    assert "; lost: points of accuracy; errors: of logits\n" in ran.out
    assert "onnx-int8-trt" in ran.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], "no int8 ONNX suits every consumer"),
        (["--precision", "bf16"], "--precision bf16"),
        (["--batch", "8-4"], "is no batch range"),
        (["--max-drop", "-1"], "is no number of points"),
        (["--calibrator", "mean"], "--calibrator mean; known: minmax, percentile, entropy"),
        (["--qat", "1"], "add --precision int8"),
        (["--precision", "int8", "--for", "x86", "--role", "teacher", "--qat", "1"], "the teacher has nobody"),
        (["--precision", "int8", "--for", "x86", "--calibration", "empty"], "empty"),
        (["--precision", "int8", "--for", "x86", "--calibration", "few"], "at least 16 are wanted"),
    ],
)
def test_requests_that_make_no_sense_are_one_line(
    command: Edgeda, run_directory: Path, folders: Folders, options: list[str], words: str
) -> None:
    Path("empty").mkdir()
    Path("few").mkdir()
    for path in sorted(folders.target.rglob("*.jpg"))[:3]:
        (Path("few") / path.name).write_bytes(path.read_bytes())
    ran = command("export", run_directory, "--out", "out", *options)
    assert ran.code == 2
    assert words in ran.error
    assert not Path("out").exists()


def test_foreign_onnx_files(command: Edgeda) -> None:
    """Not ONNX or cut off: refused; weights outside the folder: not read; without our metadata: profiled."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, (2, 3, 4, 4), np.full(96, 0.5, np.float32).tobytes(), raw=True)
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Flatten", ["c"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [images], [logits], [weight]), opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )  # fmt: skip
    Path("inside").mkdir()
    foreign = Path("inside/foreign.onnx")
    onnx.save(model, foreign)
    profiled = command("profile", foreign, "--engine", "onnxruntime", "--seconds", 0.01, "--json")
    assert profiled.code == 0, profiled.err
    assert "was not exported by edgeda" in command("evaluate", foreign, "--data", ".").error
    cut = Path("inside/cut.onnx")
    cut.write_bytes(foreign.read_bytes()[:-20])
    assert "truncated or not an ONNX model" in command("profile", cut).error
    cut.write_text("a letter")
    assert "truncated or not an ONNX model" in command("profile", cut).error
    Path("secret.bin").write_bytes(weight.raw_data)
    outside = model.graph.initializer[0]
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret.bin")
    Path("inside/outside.onnx").write_bytes(model.SerializeToString())
    ran = command("profile", "inside/outside.onnx", "--engine", "onnxruntime", "--seconds", 0.01)
    assert ran.code == 2
    assert "inside/outside.onnx keeps weights in '../secret.bin', which is no file of its own folder" in ran.error
