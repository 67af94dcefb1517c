"""`edgeda predict` as a user runs it, on the exports of a real run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edgeda.cli_predict import stopped_by_signals
from edgeda.data import load_test
from edgeda.inference import predict_logits
from edgeda.models import load_network
from edgeda.prediction_tally import RateLine, Tally
from edgeda.runtime import Classifier, DriftMonitor, DriftReference
from tests.conftest import Edgeda, Folders


@pytest.fixture(scope="module")
def exported(edgeda: Edgeda, run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, with its student exported."""
    run = tmp_path_factory.mktemp("predict") / "run"
    shutil.copytree(run_directory, run)
    ran = edgeda("export", run, "--json")
    assert ran.code == 0, ran.err
    return run


def lines(text: str) -> list[dict]:
    return [json.loads(one) for one in text.splitlines()]


def film(path: Path, folders: Folders, frames: int = 30) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    pictures = sorted(folders.target.rglob("*.jpg"))
    for index in range(frames):
        picture = Image.open(pictures[index % len(pictures)]).convert("RGB").resize((64, 48))
        writer.write(np.asarray(picture)[..., ::-1].copy())
    writer.release()
    return path


def test_predictions_are_those_of_evaluate_image_by_image(exported: Path, folders: Folders, command: Edgeda, tmp_path):
    import openvino

    network, card = load_network(exported / "student.safetensors")
    images = load_test(str(folders.target_test), card.classes, card.preprocessing)
    logits = predict_logits(network, images.squares, card.preprocessing).numpy()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    onnx_file, ir = exported / "exports" / "student.onnx", tmp_path / "ir"
    openvino.save_model(openvino.Core().read_model(onnx_file), ir / "student.xml", compress_to_fp16=False)
    shutil.copy(exported / "exports" / "manifest.json", ir)
    for path, engine in ((onnx_file, "onnxruntime"), (onnx_file, "openvino"), (ir, None)):
        found = Classifier(path, engine)(list(images.names))
        np.testing.assert_allclose([one.probabilities for one in found], expected, atol=1e-5)
        arguments = ("--engine", engine) if engine else ()
        ran = command("predict", path, "--source", folders.target_test, "--top-k", 2, *arguments)
        assert ran.code == 0, ran.err
        said = {one["image"]: one for one in lines(ran.out)}
        assert [said[name]["label"] for name in images.names] == [card.classes[at] for at in logits.argmax(axis=1)]
        one = said[images.names[0]]
        assert [entry["probability"] for entry in one["top"]] == pytest.approx(sorted(expected[0])[:-3:-1], abs=2e-5)
        right = 100 * np.mean([said[name]["label"] == Path(name).parent.name for name in images.names])
        ran = command("evaluate", path, "--data", folders.target_test, "--json")
        assert ran.json["accuracy"] == pytest.approx(right, abs=0.01)


def test_images_video_list_and_pattern_together(exported: Path, folders: Folders, command: Edgeda, tmp_path: Path):
    video = film(tmp_path / "film.avi", folders)
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in sorted(folders.target.rglob("*.jpg"))[:4]))
    (tmp_path / "broken.png").write_text("no image")
    ran = command(
        "predict", exported, "--source", video, "--source", "list.txt", "--source", folders.target / "**" / "*.jpg",
        "--source", "broken.png", "--save", "out", "--batch-size", 4,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = lines(ran.out)
    assert [one["frame"] for one in found if one["source"] == str(video)] == list(range(30))
    assert [one["time_s"] for one in found if one["source"] == str(video)][:3] == [0.0, 0.1, 0.2]
    assert len([one for one in found if one["source"] == "list.txt"]) == 4
    assert [one["error"] for one in found if one["source"] == "broken.png"] == [
        next(one["error"] for one in found if "error" in one)
    ]
    assert "66 frames, 1 more could not be read" in ran.err  # 30 + 4 + 32
    capture = cv2.VideoCapture("out/film.mp4")
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 30
    capture.release()
    assert len(list(Path("out").rglob("*.jpg"))) == 36
    again = command("predict", exported, "--source", video, "--save", "out")
    assert (again.code, again.out) == (2, "")
    assert "--save out is not empty" in again.error


def test_one_summary_with_json(exported: Path, folders: Folders, command: Edgeda):
    ran = command("predict", exported, "--source", folders.target_test, "--json")
    summary = ran.json
    assert (summary["frames"], summary["unreadable"], summary["stopped"]) == (20, 0, False)
    assert sum(summary["labels"].values()) == 20
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]


def test_drift_is_said_once_and_its_frames_are_collected(exported: Path, command: Edgeda, tmp_path: Path):
    manifest = json.loads((exported / "exports" / "manifest.json").read_text())
    assert manifest["drift"]["images"] == 20
    classifier = Classifier(exported / "exports" / "student.onnx", "onnxruntime")
    monitor = DriftMonitor(DriftReference.from_dict(classifier.manifest.drift))
    noise = np.random.default_rng(0)
    (tmp_path / "night").mkdir()
    for index in range(210):
        Image.fromarray(noise.integers(0, 20, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "night" / f"{index:03}.png")
    ran = command("predict", exported, "--source", "night", "--collect", "frames", "--collect-limit", 7)
    assert ran.code == 0, ran.err
    events = [one for one in lines(ran.out) if "event" in one]
    assert [(one["event"], one["frame"]) for one in events] == [("drift", 99)]
    assert events[0]["distance"] > events[0]["threshold"] == round(monitor.threshold, 4)
    assert "no longer looks like what the model was adapted to" in ran.err
    assert len(list(Path("frames").glob("*.jpg"))) == 7


def test_too_few_frames_for_a_test_of_drift_are_said(exported: Path, folders: Folders, command: Edgeda, tmp_path: Path):
    ran = command("predict", exported, "--source", folders.target_test, "--drift")
    assert ran.err.strip().endswith("drift: not tested, 20 of the 100 images that a test needs")
    video = film(tmp_path / "film.avi", folders, frames=45)
    both = ("predict", exported, "--source", video, "--source", folders.target_test, "--drift", "--drift-every", 20)
    said = f"; drift of {video}: not tested, 3 of the 100 images (one in 20 frames) that a test needs; drift of "
    assert said in command(*both).err
    drift = command(*both, "--json").json["sources"][0]["drift"]
    assert drift == {"alarms": 0, "last": None, "frames": 3, "every": 20, "window": 100}
    assert "drift" not in command("predict", exported, "--source", folders.target_test).err
    pictures = [word for path in sorted(folders.target_test.rglob("*.png"))[:4] for word in ("--source", path)]
    assert (
        command("predict", exported, *pictures, "--drift")
        .err.strip()
        .endswith("; drift: not tested for 4 of 4 sources, which have too few images")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--source is missing"),
        (["--source", "nowhere.jpg"], "no such file, folder, address or camera: nowhere.jpg"),
        (["--source", "*.bmp"], "no file matches *.bmp"),
        (["--source", "empty"], "no images or videos in empty"),
        (["--source", "text.mp4"], "no frames can be read from the video text.mp4"),
        (["--source", "text.mp4", "--source", "text.mp4"], "given twice"),
        (["--source", "text.jpg"], "no image could be read (1 tried)"),
        (["--source", "20260101123000"], "no such file, folder, address or camera: 20260101123000"),
        (["--source", "²"], "no such file, folder, address or camera: ²"),
        (["--source", "text.jpg", "--save", "a", "--collect", "./a"], "--save and --collect name one folder"),
        (["--source", "rtsp://127.0.0.1:9/x", "--retries", "1"], "no frames from rtsp://127.0.0.1:9/x in 1 tries"),
    ],
)
def test_sources_that_give_nothing(exported: Path, command: Edgeda, tmp_path: Path, arguments, words: str):
    (tmp_path / "empty").mkdir()
    for name in ("text.mp4", "text.jpg"):
        (tmp_path / name).write_text("hello")
    ran = command("predict", exported, *arguments)
    assert ran.code == 2
    assert words in ran.error


def test_a_run_that_was_not_exported(run_directory: Path, command: Edgeda, tmp_path: Path):
    shutil.copytree(run_directory, tmp_path / "run", ignore=shutil.ignore_patterns("exports"))
    ran = command("predict", "run", "--source", "x.jpg")
    assert (ran.code, "edgeda export run" in ran.error) == (2, True)


def test_a_run_without_the_plain_export_takes_its_only_one_and_lists_several(
    exported: Path, folders: Folders, command: Edgeda, tmp_path: Path
):
    shutil.copytree(exported, tmp_path / "run", ignore=shutil.ignore_patterns("exports"))
    shutil.copytree(exported / "exports", tmp_path / "run" / "exports" / "onnx-int8-x86")
    kit = tmp_path / "run" / "exports" / "python-kit"
    shutil.copytree(exported / "exports", kit)
    (kit / "bundle.json").write_text("{}")
    ran = command("predict", "run", "--source", folders.target_test, "--json")
    assert ran.json["model"] == "run/exports/onnx-int8-x86/student.onnx"
    assert "taking the only exported model of the run, run/exports/onnx-int8-x86/student.onnx" in ran.err
    shutil.copytree(exported / "exports", tmp_path / "run" / "exports" / "onnx-fp16")
    ran = command("predict", "run", "--source", folders.target_test)
    assert (ran.code, ran.error.strip()) == (
        2,
        "error: the run run has no exports/student.onnx; name one of: run/exports/onnx-fp16/student.onnx, "
        "run/exports/onnx-int8-x86/student.onnx",
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, "closed pipe"])
def test_it_stops_cleanly(exported: Path, folders: Folders, environment, tmp_path: Path, way, engine: str):
    video = film(tmp_path / "film.avi", folders, frames=6000)
    command = [
        sys.executable,
        "-m",
        "edgeda",
        "predict",
        str(exported),
        "--source",
        str(video),
        "--engine",
        engine,
    ]
    command += ["--save", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        assert running.stdout
        assert running.stderr
        assert json.loads(running.stdout.readline())["frame"] == 0
        if way == "closed pipe":
            running.stdout.close()
        else:
            os.kill(running.pid, way)
            if way == signal.SIGTERM:
                os.kill(running.pid, way)  # supervisors may say it twice
            rest = running.stdout.read().splitlines()
            assert [json.loads(one)["frame"] for one in rest] == list(range(1, len(rest) + 1))  # the last one too
        said = running.stderr.read().decode()
        code = running.wait(60)
    assert "Traceback" not in said
    assert code == (0 if way == "closed pipe" else 2)
    if way != "closed pipe":
        assert "before the end of the files" in said
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert 0 < int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) < 6000
    capture.release()


def test_hidden_files_of_a_folder_are_passed_over(exported: Path, folders: Folders, command: Edgeda, tmp_path: Path):
    """macOS leaves them beside what was copied from it."""
    (tmp_path / "films").mkdir()
    film(tmp_path / "films" / "a.avi", folders, frames=3)
    (tmp_path / "films" / "._a.avi").write_bytes(b"no film")
    ran = command("predict", exported, "--source", tmp_path / "films", "--json")
    assert (ran.code, ran.json["frames"]) == (0, 3), ran.err


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch):
    """As Ctrl-C is in the background of a script."""
    kept: dict[int, object] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}
    monkeypatch.setattr(signal, "getsignal", kept.__getitem__)
    monkeypatch.setattr(signal, "signal", lambda number, handler: kept.__setitem__(number, handler))
    pipeline = types.SimpleNamespace(stop=lambda: None)
    with stopped_by_signals(pipeline):  # type: ignore[arg-type]
        assert kept[signal.SIGINT] == signal.SIG_IGN
        assert callable(kept[signal.SIGTERM])


def test_the_line_of_progress_needs_no_stderr(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", None)
    line = RateLine(Tally([]))
    line._due = 0.0
    line.show()
    line.close()
