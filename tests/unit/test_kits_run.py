"""Kits run by themselves, with the wheel that is inside them: in this Python, and in the system's with GStreamer."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeda.bundling import bundle
from edgeda.bundling.wheel import WHEEL
from edgeda.data.image_files import IMAGE_SUFFIXES
from edgeda.errors import InputError
from edgeda.runtime import Classifier
from edgeda.runtime.backends import read_manifest
from tests.unit.test_bundling import NASTY, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "student.onnx")


def run_kit(folder: Path, script: str, *arguments: str, python: str = sys.executable, site: str | None = None):
    """A kit's script with the kit's own wheel and nothing of this checkout."""
    zipfile.ZipFile(folder / WHEEL).extractall(folder.parent / "site")
    paths = [str(folder.parent / "site"), *([site] if site else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, str(folder / script), *arguments], capture_output=True, text=True, cwd=folder.parent,
                          env=environment, timeout=120)  # fmt: skip


def test_the_python_kit_runs_by_itself(model: Path, tmp_path: Path):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    import cv2

    made = bundle(str(model), "python", tmp_path / "kit")
    done = run_kit(made.path, "classify.py")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    ramp = np.broadcast_to(np.linspace(0, 255, 320, dtype=np.uint8)[None, :, None], (240, 320, 3)).copy()
    assert json.loads(line)["label"] == Classifier(model)(ramp)[0].label
    picture = np.random.default_rng(4).integers(0, 256, (30, 40, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "red.png"), picture[..., ::-1])
    done = run_kit(made.path, "classify.py", "--source", str(tmp_path / "red.png"))
    (line,) = done.stdout.splitlines()
    expected = Classifier(model)(picture)[0]
    assert json.loads(line)["probability"] == pytest.approx(expected.probability, abs=1e-4)
    turned = Image.fromarray(picture)  # as a telephone held upright makes them
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    done = run_kit(made.path, "classify.py", "--source", str(tmp_path / "turned.png"))
    wanted = Classifier(model)(tmp_path / "turned.png")[0].probability
    assert wanted != pytest.approx(expected.probability, abs=1e-4)
    assert json.loads(done.stdout)["probability"] == pytest.approx(wanted, abs=1e-4)
    spoilt = run_kit(made.path, "classify.py", "--source", "no-such-file.jpg")
    assert (spoilt.returncode, spoilt.stderr) == (1, "error: no such image: no-such-file.jpg\n")
    missing = run_kit(made.path, "classify.py", "--source", "no-such-file.mp4")
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("error: cannot open no-such-file.mp4")


def test_the_python_kit_knows_every_kind_of_image(model: Path, tmp_path: Path):
    made = bundle(str(model), "python", tmp_path / "kit")
    assert frozenset(runpy.run_path(str(made.path / "classify.py"))["IMAGES"]) == IMAGE_SUFFIXES


def system_python() -> str:
    """A Python with GStreamer's bindings that can load this environment's packages; skips with the reason."""
    python = "/usr/bin/python3"
    probe = (
        "import sys, gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst; print(sys.version_info[:2])"
    )
    if not shutil.which(python):
        pytest.skip("no system Python, which has GStreamer's bindings")
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("GStreamer's Python bindings are not installed (Debian: python3-gi, gir1.2-gstreamer-1.0)")
    if done.stdout.strip() != str(tuple(sys.version_info[:2])):
        pytest.skip(f"the system's Python {done.stdout.strip()} cannot load this environment's packages")
    return python


def test_the_gstreamer_kit_runs_by_itself(model: Path, tmp_path: Path):
    python = system_python()
    made = bundle(str(model), "gstreamer", tmp_path / "kit")
    site = sysconfig.get_paths()["purelib"]
    done = run_kit(made.path, "pipeline.py", python=python, site=site)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(30))
    assert {line["label"] for line in lines} <= set(NASTY)
    missing = run_kit(made.path, "pipeline.py", "--uri", "file:///no-such.mp4", python=python, site=site)
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("error: ")


def test_gstreamer_frames_hold_the_pixels_that_were_sent(model: Path, tmp_path: Path):
    """A PNG 21 pixels wide, whose rows GStreamer pads, decoded through the kit's own pipeline."""
    from PIL import Image

    python = system_python()
    made = bundle(str(model), "gstreamer", tmp_path / "kit")
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (18, 21, 3), np.uint8)).save(tmp_path / "small.png")
    done = run_kit(made.path, "pipeline.py", "--uri", (tmp_path / "small.png").as_uri(), python=python,
                   site=sysconfig.get_paths()["purelib"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = Classifier(model)(tmp_path / "small.png")[0]
    line = json.loads(done.stdout.splitlines()[0])
    assert line["label"] == expected.label
    assert line["probability"] == pytest.approx(expected.probability, abs=1e-4)


def test_an_openvino_model_goes_into_the_kit_that_runs_it(model: Path, tmp_path: Path):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    folder = tmp_path / "ir"
    folder.mkdir()
    openvino.save_model(openvino.convert_model(str(model)), str(folder / "student.xml"))
    (folder / "manifest.json").write_text(json.dumps(read_manifest(model).to_dict()))
    made = bundle(str(folder), "python", tmp_path / "kit")
    assert "openvino" in (made.path / "requirements.txt").read_text()
    done = run_kit(made.path, "classify.py")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] in NASTY
    for kit in ("deepstream", "gstreamer"):
        with pytest.raises(InputError, match=r"needs the \.onnx"):
            bundle(str(folder), kit, tmp_path / "other")
