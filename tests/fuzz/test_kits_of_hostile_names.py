"""Kits of models whose class names and run want harm: the files that other tools read, by those tools' parsers."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeda.bundling import KITS, bundle
from edgeda.bundling.labels import LONGEST
from edgeda.errors import InputError
from edgeda.runtime.backends import read_manifest
from tests.fuzz.mutate import NASTY_NAMES
from tests.fuzz.seeds import manifest, onnx_bytes

NAMES = (
    *(name for name in NASTY_NAMES if name != "\ud800"),  # no protobuf text holds half a character
    '"""\nimport os\nos.system("touch pwned")\n"""',
    "x\n[property]\nonnx-file=/etc/passwd\n#",
    '"\n]\n}\nname: "evil"\n',
    "'; touch pwned; '",
    "a\nb",
)
RUN = '../x"; touch pwned; $(touch pwned) `id`\n[property]\nname: "evil" \'\n"""\n' + "r" * 1000
OF_THE_NAMES = {"model.onnx", "labels.txt", "bundle.json"}


def made(folder: Path, kit: str, classes: tuple[str, ...], run: str, name: str | None = None) -> Path:
    """A kit of a model that says so of itself."""
    folder.mkdir()
    said = json.dumps({**manifest(classes), "source_run": run})
    (folder / "student.onnx").write_bytes(onnx_bytes({"edgeda": said}, classes=len(classes)))
    return bundle(str(folder / "student.onnx"), kit, folder / "kit", name).path


def texts(kit: Path) -> dict[str, str]:
    """Every file but models and the wheel."""
    found = {path.relative_to(kit).as_posix(): path for path in kit.rglob("*") if path.is_file()}
    return {name: path.read_text("utf-8") for name, path in found.items() if path.suffix not in (".onnx", ".whl")}


@pytest.mark.parametrize("kit", KITS)
def test_other_tools_read_every_file_of_the_kit(kit: str, tmp_path: Path):
    hostile = made(tmp_path / "hostile", kit, NAMES, RUN)
    found = texts(hostile)
    listing = json.loads(found["bundle.json"])
    assert listing["source_run"] == RUN
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", listing["name"])
    assert all(re.fullmatch(r"[A-Za-z0-9._/+-]+", name) and ".." not in name for name in listing["files"])
    harmless = texts(made(tmp_path / "harmless", kit, tuple(map(str, range(len(NAMES)))), "run", listing["name"]))
    assert {name for name in found if found[name] != harmless[name]} == {
        name for name in found if Path(name).name in OF_THE_NAMES
    }, "names go into no other file"
    for name, text in found.items():
        if name.endswith(".py"):
            compile(text, name, "exec")
        elif name.endswith(".sh") and shutil.which("bash"):
            subprocess.run(["bash", "-n", hostile / name], check=True)
        elif name.endswith(".md"):
            for command in re.findall(r"^    (\S.*)$", text.replace("\\\n", " "), re.MULTILINE):
                assert shlex.split(command), command
        elif name.startswith("config_infer"):
            assert nvinfer(text) == nvinfer(harmless[name])
        elif name.endswith("labels.txt"):
            separate = text.removesuffix("\n").split(";" if kit == "deepstream" else "\n")
            assert len(set(separate)) == len(separate) == len(NAMES)
            assert all(label.isprintable() and 0 < len(label.encode()) <= LONGEST for label in separate)
    for model in hostile.rglob("model.onnx"):
        if kit in ("python", "gstreamer"):
            assert read_manifest(model).classes == NAMES, "the runtime gives the names as they are"


def nvinfer(text: str) -> dict[str, str]:
    """The one section of a configuration of nvinfer."""
    read = configparser.ConfigParser(interpolation=None)
    read.read_string(text)
    assert read.sections() == ["property"]
    return dict(read["property"])


def test_triton_reads_its_configuration_and_labels(tmp_path: Path):
    grpc = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    kit = made(tmp_path / "hostile", "triton", NAMES, RUN)
    (path,) = kit.rglob("config.pbtxt")
    config = text_format.Parse(path.read_text(), grpc.ModelConfig())
    assert config.name == path.parent.name
    assert list(config.output[0].dims) == [len(NAMES)]
    assert len((path.parent / config.output[0].label_filename).read_text().splitlines()) == len(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "con"])
def test_a_kit_is_called_by_nothing_but_letters_and_digits(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="--name"):
        made(tmp_path / "m", "python", ("a", "b"), "run", name)
    assert not (tmp_path / "m" / "kit").exists()
