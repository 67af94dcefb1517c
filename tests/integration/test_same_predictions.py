"""Runtime, `predict` and `evaluate` say the same of every image, whatever the artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeda.artifacts import RunDirectory
from edgeda.data import load_test
from edgeda.evaluate import evaluate
from edgeda.export import Calibration, Options, Request, export_run
from edgeda.inference import predict_logits
from edgeda.models import load_network
from edgeda.runtime import Classifier
from edgeda.runtime.classifier import softmax
from tests.conftest import Edgeda, Folders

ARTIFACTS = (
    Request(),
    Request(precision="fp16"),
    Request(precision="fp16", consumer="trt-8.6"),
    Request(precision="int8", consumer="x86"),
    Request(precision="int8", consumer="trt"),
    Request(raw="nhwc"),
    Request(raw="nchw", batch=(3, 3)),
    Request(batch=(2, 5)),
    Request("openvino", "fp32", "openvino"),
    Request("openvino", "fp16", "openvino"),
    Request("openvino", "int8", "openvino"),
    Request("openvino", "fp32", "openvino", raw="nhwc"),
)
"""Every kind that runs without a GPU; engines need one."""


@pytest.fixture(scope="module")
def run(run_directory: Path, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A copy of the run with all of them."""
    made = RunDirectory(tmp_path_factory.mktemp("same") / "run")
    shutil.copytree(run_directory, made.path, ignore=shutil.ignore_patterns("exports", "checkpoint"))
    _, card = load_network(made.weights())
    squares = load_test(str(folders.target_test), card.classes, card.preprocessing).squares
    export_run(
        made, squares, images_from="target-test", wanted=ARTIFACTS, calibration=Calibration(squares, "target-test"),
        options=Options(latency_s=0.01, max_drop=100, calibrator="minmax"), threads=1,
    )  # fmt: skip
    return made


@pytest.fixture
def logits_of_evaluate(monkeypatch: pytest.MonkeyPatch, folders: Folders):
    """What `evaluate` judges: a MODEL's engine and the logits of each image, in the order of its images."""

    def logits(model: Path) -> tuple[str, NDArray[np.float32]]:
        kept: list[NDArray[np.float32]] = []
        monkeypatch.setattr("edgeda.evaluate._report", lambda found, *_: kept.append(found) or {})
        return evaluate(str(model), str(folders.target_test))["engine"], kept[0]

    return logits


@pytest.mark.parametrize("request_", ARTIFACTS, ids=[one.label or "onnx-fp32" for one in ARTIFACTS])
def test_image_by_image(run: RunDirectory, request_: Request, folders: Folders, command: Edgeda, logits_of_evaluate):
    folder = run.exports / request_.label
    model = folder if request_.format == "openvino" else folder / "student.onnx"
    engine, logits = logits_of_evaluate(model)
    expected = softmax(logits)
    classifier = Classifier(model, engine, 1)
    names = load_test(str(folders.target_test), classifier.classes, classifier.preprocessing).names
    found = classifier([str(name) for name in names])
    np.testing.assert_allclose([one.probabilities for one in found], expected, atol=1e-5)
    likeliest = [classifier.classes[at] for at in expected.argmax(axis=1)]
    assert [one.label for one in found] == likeliest
    ran = command("predict", model, "--source", folders.target_test, "--engine", engine)
    assert ran.code == 0, ran.err
    said = {one["image"]: one for one in map(json.loads, ran.out.splitlines())}
    assert [said[name]["label"] for name in names] == likeliest
    np.testing.assert_allclose([said[name]["probability"] for name in names], expected.max(axis=1), atol=1e-5)


def test_a_run_directory_is_judged_by_the_network_that_was_exported(
    run: RunDirectory, folders: Folders, command: Edgeda, logits_of_evaluate
):
    engine, logits = logits_of_evaluate(run.path)
    network, card = load_network(run.weights())
    images = load_test(str(folders.target_test), card.classes, card.preprocessing)
    assert engine == "torch"
    np.testing.assert_array_equal(logits, predict_logits(network, images.squares, card.preprocessing).numpy())
    ran = command("predict", run.path, "--source", folders.target_test)  # its exported student
    said = {one["image"]: one for one in map(json.loads, ran.out.splitlines())}
    assert [said[name]["label"] for name in images.names] == [card.classes[at] for at in logits.argmax(axis=1)]
    np.testing.assert_allclose(
        [said[name]["probability"] for name in images.names], softmax(logits).max(axis=1), atol=1e-5
    )
