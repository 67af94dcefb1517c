"""Inputs that once ended with a bug, a hang, another program or a file in the wrong place: refused in one line now."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeda.artifacts import RunDirectory
from edgeda.checkpoint import FILE, load_checkpoint
from edgeda.console import shown
from edgeda.data.archives import is_archive
from edgeda.data.digit_files import read_digits
from edgeda.data.prepare import prepare
from edgeda.errors import InputError
from edgeda.fleet.recipe import load_fleet
from edgeda.models import load_network
from edgeda.recipe_file import load_recipe
from edgeda.report.report import read_history
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.onnx_file import read_metadata
from edgeda.runtime.preprocessing import open_image
from tests.fuzz.seeds import onnx_bytes

CORPUS = Path(__file__).parents[1] / "corpus"


def _summary(path: Path, folder: Path) -> object:
    (folder / "summary.json").write_bytes(path.read_bytes())
    return RunDirectory(folder).summary()


def _checkpoint(path: Path, folder: Path) -> object:
    (folder / FILE).write_bytes(path.read_bytes())
    return load_checkpoint(folder)


def _archive(path: Path, folder: Path) -> object:
    name = "imageclef" if "list" in path.name else "office31"
    try:
        return prepare(name, path, folder / "data" / "sets", partial=True)
    finally:
        assert not [file for file in folder.rglob("*") if file.is_file()], "nothing is left of it, wherever"


READERS: dict[str, Callable[[Path, Path], object]] = {
    "recipe": lambda path, folder: (load_fleet if "bomb" in path.name else load_recipe)(str(path)),
    "eps": lambda path, folder: open_image(path),
    "png": lambda path, folder: open_image(path),
    "archive": _archive,
    "usps": lambda path, folder: read_digits([path]),
    "onnx": lambda path, folder: read_metadata(path),
    "manifest": lambda path, folder: Manifest.from_json(path.read_text()),
    "weights": lambda path, folder: load_network(path),
    "summary": _summary,
    "checkpoint": _checkpoint,
}


def corpus(*kinds: str) -> list[str]:
    return sorted(path.name for path in CORPUS.iterdir() if path.name.split("-")[0].split(".")[0] in kinds)


@pytest.mark.parametrize("name", corpus(*READERS))
def test_refused_in_one_short_line(name: str, tmp_path: Path):
    read = READERS[name.split("-")[0].split(".")[0]]
    with pytest.raises(InputError) as refused:
        read(CORPUS / name, tmp_path)
    assert len(str(refused.value)) < 1000
    assert "checksum" not in str(refused.value), "it is refused for what it holds"


@pytest.mark.parametrize("name", corpus("metrics"))
def test_a_line_that_is_no_epoch_ends_the_history(name: str, tmp_path: Path):
    good = '{"stage": "joint", "epoch": 1, "losses": {"x": 1.0}, "networks": {}}\n'
    (tmp_path / "metrics.jsonl").write_text(good + (CORPUS / name).read_text() + good)
    assert len(read_history(RunDirectory(tmp_path))) == 1


def test_every_file_of_the_corpus_is_read_by_a_test():
    assert {path.name for path in CORPUS.iterdir()} == {*corpus(*READERS), *corpus("metrics")}


def test_a_cut_archive_is_none():
    assert not is_archive(CORPUS / "archive-cut.tar.gz")


def test_yaml_aliases_that_do_not_multiply_are_fine(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("teacher: &one {backbone: r18, pretrained: none}\nstudent: *one\n"
                                     "data: {source: a, target: b}\n")  # fmt: skip
    assert load_recipe(str(tmp_path / "r.yaml")).student.backbone == "r18"


@pytest.mark.parametrize(
    "place", ["../secret.bin", "/etc/hostname", "link.bin", "a/../../secret.bin", "..\\secret.bin", "fifo"]
)
def test_weights_of_an_onnx_file_stay_in_its_folder(tmp_path: Path, place: str):
    import onnx

    model = onnx.ModelProto.FromString(onnx_bytes())
    branch = onnx.helper.make_graph([], "g", [], [], [model.graph.initializer[2]])
    tensor = branch.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"s" * 128)
    (folder / "link.bin").symlink_to("../secret.bin")
    os.mkfifo(folder / "fifo")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="may not read others"):
        read_metadata(folder / "m.onnx")
    tensor.external_data[0].value = "weights.bin"
    model.graph.node[-1].attribute[0].g.CopyFrom(branch)
    model.graph.node[-1].attribute[1].g.CopyFrom(branch)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    assert "edgeda" in read_metadata(folder / "m.onnx"), "a file beside the model is its own"


@pytest.mark.parametrize("inside", [True, False])
def test_an_onnx_file_is_not_walked_for_ever(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgeda.runtime.onnx_file._MOST_FIELDS", 50)
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_bytes())
    with pytest.raises(InputError, match="more than 50 fields"):
        read_metadata(path)
    nodes = b"\x0a\x00" * 60
    path.write_bytes(b"\x08\x08" + (b"\x3a" + bytes([len(nodes)]) + nodes if inside else nodes))
    with pytest.raises(InputError, match="more than 50 fields"):
        read_metadata(path)


def test_a_terminal_gets_nothing_that_it_would_obey():
    assert shown("caf\u00e9 \u732b\n") == "caf\u00e9 \u732b\n"
    assert shown("\x1b]0;x\x07 \u202egnp \udcff \0") == "\\x1b]0;x\\x07 \\u202egnp \\udcff \\x00"


def test_onnx_runtime_keeps_no_device_id_and_tells_nobody(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(onnx_bytes())
    script = "import edgeda.runtime as r; print(r.Classifier('m.onnx', 'onnxruntime').classes)"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    environment.update(HOME=str(tmp_path), PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "('0', '1', '2', '3')" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["m.onnx"]


SWITCHES = """
import json, os
before = dict(os.environ)
import edgeda
try:
    import openvino_telemetry
    mute = False
except ImportError:
    mute = True
print(json.dumps([{name: value for name, value in os.environ.items() if before.get(name) != value}, mute]))
"""


def test_what_reports_its_use_is_switched_off_as_the_document_says():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "hostile-input.md").read_text()
    section = text.split("## Packages that report their use")[1].split("##")[0]
    documented = dict(re.findall(r"`([A-Z_]+)=(\w+)`", section))
    assert len(documented) == 4

    def switched(**own: str) -> list:
        environment = {name: value for name, value in os.environ.items() if name not in documented}
        environment.update(PYTHONPATH=str(root), **own)
        command = [sys.executable, "-c", SWITCHES]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert switched() == [documented, True]
    del documented["ORT_DISABLE_TELEMETRY"]
    assert switched(ORT_DISABLE_TELEMETRY="0") == [documented, True], "a variable of the user's own stays"
