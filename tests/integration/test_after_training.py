"""evaluate, export, profile, compare and doctor on a finished run, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Edgeda, Folders


@pytest.fixture(scope="module")
def exported(edgeda: Edgeda, run_directory: Path) -> dict:
    ran = edgeda("export", run_directory, "--onnx", "--json")
    assert ran.code == 0, ran.err
    return ran.json


def test_export_agrees_with_torch_on_target_images(exported: dict):
    parity = exported["manifest"]["parity"]
    assert parity["max_abs_error"] <= 1e-4
    assert parity["batches"] == [1, 7]
    assert parity["images"] == 20
    assert "target-test" in parity["images_from"]


def test_the_file_runs_in_plain_onnxruntime_and_knows_its_classes(exported: dict, folders: Folders):
    """Nothing of edgeda: the metadata alone is enough to classify an image as `evaluate` does."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported["path"], providers=["CPUExecutionProvider"])
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["edgeda"])
    assert manifest["classes"] == ["0", "1", "2", "3"]
    pixels = manifest["preprocessing"]
    picture = Image.open(next(iter(sorted(folders.target_test.rglob("*.png"))))).convert("RGB")
    resized = picture.resize((pixels["size"], pixels["size"]), Image.Resampling.BILINEAR)
    one = (np.asarray(resized, np.float32) / 255 - pixels["mean"]) / pixels["std"]
    one = one.transpose(2, 0, 1)[None].astype(np.float32)
    assert session.run(None, {"images": one})[0].shape == (1, 4)
    seven = session.run(None, {"images": np.repeat(one, 7, axis=0)})[0]
    assert np.allclose(seven, session.run(None, {"images": one})[0], atol=1e-4)


def test_the_file_holds_no_path_of_this_machine(exported: dict, run_directory: Path):
    import onnx

    content = Path(exported["path"]).read_bytes()
    for path in (run_directory.parent, Path.home(), Path(sys.prefix), Path(__file__).parent):
        assert str(path).encode() not in content
    model = onnx.load(exported["path"])
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # millions of random bytes spell any three letters
    assert b".py" not in model.SerializeToString()
    assert exported["manifest"]["source_run"] == run_directory.name


def test_evaluate_says_the_same_of_run_and_export(
    command: Edgeda, run_directory: Path, folders: Folders, exported: dict
):
    in_torch = command("evaluate", run_directory, "--data", folders.target_test, "--json").json
    in_onnx = command("evaluate", exported["path"], "--data", folders.target_test, "--json").json
    summary = json.loads((run_directory / "summary.json").read_text())
    assert in_torch["accuracy"] == in_onnx["accuracy"] == summary["accuracy"]["student"]["target"]["selected"]
    assert in_torch["per_class"] == in_onnx["per_class"]
    assert in_torch["images"] == 20


def test_evaluate_needs_data_with_the_models_classes(command: Edgeda, run_directory: Path, tmp_path: Path):
    assert "--data" in command("evaluate", run_directory).error
    (tmp_path / "data" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "cat" / "a.png")
    ran = command("evaluate", run_directory, "--data", tmp_path / "data")
    assert ran.code == 2
    assert "'cat'" in ran.error


def test_profile_counts_and_times_run_and_export(command: Edgeda, run_directory: Path, exported: dict):
    ran = command("profile", run_directory, "--seconds", 0.05, "--json")
    assert ran.code == 0, ran.err
    rows = {row["engine"]: row for row in ran.json["rows"]}
    assert set(rows) == {"torch", "onnxruntime", "openvino"}
    assert rows["onnxruntime"]["gmacs"] == pytest.approx(rows["torch"]["gmacs"], rel=0.02)
    assert rows["onnxruntime"]["params_m"] == pytest.approx(rows["torch"]["params_m"], rel=0.01)
    for row in rows.values():
        assert row["gflops"] == pytest.approx(2 * row["gmacs"])
        assert 0 < row["median_ms"] <= row["p90_ms"] <= row["p99_ms"]


def test_compare_has_the_three_networks_and_the_export(command: Edgeda, run_directory: Path, exported: dict):
    ran = command("compare", run_directory, "--seconds", 0.05)
    assert ran.code == 0, ran.err
    for words in ("teacher", "student", "source-only", "GMACs", "onnxruntime"):
        assert words in ran.out
    compared = command("compare", run_directory, "--seconds", 0.05, "--json").json
    summary = json.loads((run_directory / "summary.json").read_text())
    accuracies = {row["role"]: row["target_accuracy"] for row in compared["rows"]}
    for role in ("teacher", "student", "source_only"):
        assert accuracies[role] == summary["accuracy"][role]["target"]["selected"]


def test_without_a_model_the_newest_run_is_meant_and_named(edgeda: Edgeda, run_directory: Path, tmp_path: Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run_directory)
    ran = edgeda("profile", "--engine", "torch", "--seconds", 0.05, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "runs/mine" in ran.err


def test_known_backbones_have_their_known_cost(command: Edgeda):
    ran = command("profile", "r50", "r18", "--classes", 1000, "--input-size", 224, "--seconds", 0.01, "--json")
    assert ran.code == 0, ran.err
    costs = [(round(row["gmacs"], 1), round(row["params_m"], 1)) for row in ran.json["rows"]]
    assert costs == [(4.1, 25.6), (1.8, 11.7)]


def test_the_light_parts_work_without_torch(exported: dict, folders: Folders):
    """Command line, profile, evaluate and classifier of an exported model never import torch."""
    code = f"""
import sys
sys.modules["torch"] = None
from edgeda.cli import app
for arguments in (["profile", {exported["path"]!r}, "--seconds", "0.02"],
                  ["evaluate", {exported["path"]!r}, "--data", {str(folders.target_test)!r}], ["--version"]):
    app(arguments, standalone_mode=False)
from edgeda.runtime import Classifier
(found,) = Classifier({exported["path"]!r})({str(next(iter(folders.target_test.rglob("*.png"))))!r})
assert found.label in "0123" and abs(found.probabilities.sum() - 1) < 1e-6
assert not [name for name in sys.modules if name == "timm" or name.startswith("lightning")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_doctor_says_what_this_machine_can_do(command: Edgeda):
    ran = command("doctor")
    assert ran.code == 0, ran.err
    assert "onnxruntime" in ran.out
    found = command("doctor", "--json")
    assert isinstance(found.json, dict)


def test_help_names_every_command(command: Edgeda):
    from typer.testing import CliRunner

    from edgeda.cli import app

    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    for verb in ("adapt", "evaluate", "export", "profile", "compare", "doctor"):
        assert verb in text
    for arguments in ([], ["datasets"]):
        listed = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80"}).output.partition("Commands:")[2]
        assert listed
        assert "..." not in listed, "a summary that is cut"


def test_an_exported_run_becomes_a_kit(
    command: Edgeda, run_directory: Path, exported: dict, folders: Folders, tmp_path: Path
):
    """The kit's graph gives the classifier's probabilities for an image's own pixels."""
    import onnxruntime

    from edgeda.runtime import Classifier

    ran = command("bundle", run_directory, "--for", "triton", "--name", "digits", "--out", tmp_path / "kit", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["parity"]["max_abs_error"] < 1e-4
    picture = next(iter(sorted(folders.target_test.rglob("*.png"))))
    classify = Classifier(exported["path"])
    side = classify.preprocessing.size
    pixels = np.asarray(Image.open(picture).convert("RGB").resize((side, side), Image.Resampling.BILINEAR), np.float32)
    graph = tmp_path / "kit" / "model_repository" / "digits" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"pixels": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})
    assert np.allclose(found[0], classify(picture)[0].probabilities, atol=1e-4)


def test_a_run_that_was_not_exported_is_no_kit_yet(command: Edgeda, run_directory: Path, tmp_path: Path):
    import shutil

    shutil.copytree(run_directory, tmp_path / "run", ignore=shutil.ignore_patterns("exports", "checkpoint"))
    ran = command("bundle", tmp_path / "run", "--for", "python", "--out", tmp_path / "kit")
    assert ran.code == 2
    assert "has no student.onnx yet; make it" in ran.error
    assert not (tmp_path / "kit").exists()


def test_a_run_that_has_not_finished_cannot_be_evaluated(
    command: Edgeda, run_directory: Path, folders: Folders, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_bytes((run_directory / "recipe.yaml").read_bytes())
    ran = command("evaluate", "run", "--data", folders.target_test)
    assert (ran.code, "go on with: edgeda adapt --out run --resume" in ran.error) == (2, True), ran.err
