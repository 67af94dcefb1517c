"""What a wheel holds: the package and its recipes, nothing else importable."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_wheel_holds_edgeda_alone_with_recipes_and_typing(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"edgeda"}
    assert {"edgeda/py.typed", "edgeda/presets/digits.yaml", "edgeda/presets/default.yaml"} <= set(names)


def test_presets_are_found_in_an_installed_wheel(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import edgeda, edgeda.recipe_file as r; print(edgeda.__file__, *r.preset_names(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, *presets = done.stdout.split()
    assert where.startswith(str(tmp_path))
    assert presets == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert "paper" in presets


def test_the_light_parts_need_no_heavy_package():
    """Importing the command line, the runtime and the profiler brings no torch, onnx or scikit-learn."""
    code = (
        "import sys, edgeda.cli, edgeda.runtime, edgeda.profiling, edgeda.evaluate, edgeda.doctor\n"
        "print(*sorted({'torch', 'timm', 'onnx', 'onnxruntime', 'sklearn', 'cv2', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
