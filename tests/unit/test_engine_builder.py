"""The engine builder against the recorded surfaces of every TensorRT, and as the script that goes to devices."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeda.export import engine_builder
from edgeda.export.engine_builder import BuildError, build
from edgeda.export.engine_kit import shell_script
from edgeda.export.engine_source import read_source
from edgeda.export.tensorrt import EngineOptions, _request
from tests.fake_tensorrt import VERSIONS, Fake
from tests.tensorrt_files import COMPUTE_LAYERS, write_onnx

WEAK = {"8.6.1", "10.3.0"}
PRECISIONS = ("fp32", "fp16", "int8")


def install(monkeypatch: pytest.MonkeyPatch, version: str, **changes: object) -> Fake:
    fake = Fake(version, **changes)
    monkeypatch.setitem(sys.modules, fake.module.__name__, fake.module)
    return fake


def request_for(path: Path, version: str, **options: object) -> dict:
    package = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
    return _request(read_source(path), path.with_suffix(".engine").name, EngineOptions(**options), package)


def engine(path: Path) -> dict:
    return json.loads(path.with_suffix(".engine").read_bytes().removeprefix(b"fake engine "))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_version_builds_every_precision(
    version: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, version)
    path = write_onnx(tmp_path / "student.onnx", precision)
    report = build(request_for(path, version), tmp_path)
    built = engine(path)
    if version in WEAK:
        assert built["network"] == ["EXPLICIT_BATCH"]
        assert built["flags"] == sorted(
            {"fp32": ["TF32"], "fp16": ["FP16", "TF32"], "int8": ["INT8", "TF32"]}[precision]
        )
    else:
        assert built["network"] == ["STRONGLY_TYPED"]
        assert built["flags"] == ["TF32"]
    assert built["profiles"] == [{"images": [[1, 3, 8, 8], [1, 3, 8, 8], [8, 3, 8, 8]]}]
    assert report["engine"]["typing"] == ("weak" if version in WEAK else "strong")
    told = "fp32" if version in WEAK and precision == "fp16" else precision
    assert report["engine"]["compute_layers"] == {told: COMPUTE_LAYERS}
    assert report["engine"]["version"] == version.removeprefix("rtx-")
    assert json.loads((tmp_path / "student.engine.json").read_text()) == json.loads(json.dumps(report))
    assert report["parity"] is None  # it was measured on the ONNX file, not on the engine


@pytest.mark.parametrize("version", VERSIONS)
def test_only_an_engine_for_this_gpu_names_it(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of TensorRT for RTX runs on other GPUs too: it must not be refused there."""
    install(monkeypatch, version)
    here = {"name": "RTX 4090", "compute_capability": "8.9"}
    monkeypatch.setattr(engine_builder, "gpu", lambda: here)
    report = build(request_for(write_onnx(tmp_path / "student.onnx", "fp16"), version), tmp_path)
    assert report["engine"]["gpu"] == (None if version.startswith("rtx") else here)


@pytest.mark.parametrize(("batch", "dla"), [((2, 4, 16), None), ((4, 4, 4), 1)])
@pytest.mark.parametrize("version", [version for version in VERSIONS if not version.startswith("rtx")])
def test_every_option_on_every_version(
    version: str, batch: tuple[int, int, int], dla: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, version, dla_cores=2)
    path = write_onnx(tmp_path / "student.onnx", "fp16")
    options = {"batch": batch, "workspace_mb": 512, "timing_cache": Path("orin.cache"), "dla_core": dla,
               "version_compatible": True}  # fmt: skip
    (tmp_path / "orin.cache").write_bytes(b"kept")
    report = build(request_for(path, version, **options), tmp_path)
    built = engine(path)
    assert built["pools"] == {"WORKSPACE": 512 * 2**20}, "MiB, as trtexec takes them"
    assert built["dla"] == (None if dla is None else ["DLA", dla])
    assert set(built["flags"]) >= {"VERSION_COMPATIBLE"} | ({"GPU_FALLBACK"} if dla is not None else set())
    assert [shape[0] for shape in built["profiles"][0]["images"]] == list(batch)
    assert report["batch"] == [batch[0], batch[2]]
    assert (tmp_path / "orin.cache").read_bytes() == b"kept+"


def test_the_fakes_have_no_more_than_the_real_bindings() -> None:
    assert not hasattr(Fake("11.4.0.106").module.BuilderFlag, "FP16")
    assert not hasattr(Fake("8.6.1").module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    builder = Fake("11.1.0.106").module.Builder(None)
    with pytest.raises(AttributeError, match=r"Builder of TensorRT 11.1.0.106 has no 'platform_has_fast_fp16'"):
        _ = builder.platform_has_fast_fp16
    with pytest.raises(AttributeError, match="has no 'int8_calibrator'"):
        builder.create_builder_config().int8_calibrator = None


def test_a_file_of_fixed_batch_needs_no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.16.1.11")
    path = write_onnx(tmp_path / "student.onnx", batch=3)
    assert build(request_for(path, "10.16.1.11"), tmp_path)["batch"] == [3, 3]
    assert engine(path)["profiles"] == []


@pytest.mark.parametrize(
    ("claimed", "really", "found"),
    [("int8", "fp32", "2 in fp32"), ("fp16", "fp32", "2 in fp32"), ("fp32", "int8", "2 in int8")],
)
def test_a_network_that_is_not_what_it_claims_is_not_built(
    claimed: str, really: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "11.4.0.106")
    path = write_onnx(tmp_path / "student.onnx", really)
    request = {**request_for(path, "11.4.0.106"), "precision": claimed}
    with pytest.raises(BuildError, match=f"the file says {claimed}, .* TensorRT 11.4.0.106 has {found}") as caught:
        build(request, tmp_path)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.parametrize(
    ("changes", "fake", "message", "code"),
    [
        ({"precision": "fp32", "dla_core": 0}, {"dla_cores": 2}, "a DLA computes in fp16 or int8, not in fp32", 2),
        ({"precision": "fp16", "dla_core": 2}, {"dla_cores": 2}, "no DLA core 2 here: this device has 2", 3),
        ({"precision": "fp16", "dla_core": 0}, {"dla_cores": 2}, "a DLA takes one batch size only, not 1, 1, 8;", 2),
        ({"precision": "fp16"}, {"driver": False}, "finds no NVIDIA driver or GPU here", 3),
        ({"onnx_sha256": "0" * 64}, {}, "is not the file that the request was made for; export again", 2),
        ({"onnx": "gone.onnx"}, {}, "is not there; copy it beside build_engine.py", 2),
        ({"timing_cache": "other.cache"}, {}, "is of another GPU or version; delete it", 2),
        ({"package": "tensorrt_nowhere"}, {}, "tensorrt_nowhere cannot be imported", 3),
    ],
)
def test_what_cannot_be_built_is_one_line(
    changes: dict, fake: dict, message: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.16.1.11", **fake)
    path = write_onnx(tmp_path / "student.onnx", changes.get("precision", "fp32"))
    (tmp_path / "other.cache").write_bytes(b"other GPU")
    with pytest.raises(BuildError, match=message) as caught:
        build({**request_for(path, "10.16.1.11"), **changes}, tmp_path)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert not path.with_suffix(".engine").exists()


def test_quantized_networks_do_not_go_to_an_old_dla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "8.6.1", dla_cores=2)
    path = write_onnx(tmp_path / "student.onnx", "int8")
    with pytest.raises(BuildError, match="a DLA takes no quantized ONNX file"):
        build(request_for(path, "8.6.1", dla_core=0, batch=(1, 1, 1)), tmp_path)


def test_a_parser_error_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3.0")
    path = write_onnx(tmp_path / "student.onnx")
    request = request_for(path, "10.3.0")

    def fail(path: str) -> None:
        raise ValueError(path)

    monkeypatch.setattr("onnx.load", fail)
    with pytest.raises(BuildError, match=r"TensorRT 10.3.0 cannot read student.onnx: Failed to parse the model"):
        build(request, tmp_path)


def test_the_script_is_python_3_8_and_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(engine_builder.__file__).read_text(), feature_version=(3, 8))
    guarded = {id(inner) for node in tree.body if isinstance(node, ast.If) for inner in ast.walk(node)}
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and id(n) not in guarded}
    assert {name.split(".")[0] for name in found} <= set(sys.stdlib_module_names)


def test_the_script_builds_with_a_real_tensorrt(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx, which stands in for TensorRT here")
    (tmp_path / "packages").mkdir()
    stand_in = "import sys, tensorrt_rtx\nsys.modules[__name__] = tensorrt_rtx\n"
    (tmp_path / "packages" / "tensorrt.py").write_text(stand_in)
    (tmp_path / "device").mkdir()
    path = write_onnx(tmp_path / "device" / "student.onnx", "fp16")
    script = tmp_path / "device" / "build_engine.py"
    script.write_text(Path(engine_builder.__file__).read_text())
    (tmp_path / "device" / "build_engine.json").write_text(json.dumps(request_for(path, "10")))
    command = [sys.executable, str(script)]
    environment = {"PYTHONPATH": str(tmp_path / "packages"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compute_layers"] == {"fp16": COMPUTE_LAYERS}
    assert path.with_suffix(".engine").stat().st_size > 1000
    path.write_bytes(path.read_bytes() + b"\0")
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for text, lacks in (
        ('{"onnx": "student.onnx"}', "does not say onnx_sha256, engine, "),
        ("[]", "does not say onnx, "),
    ):
        (tmp_path / "device" / "build_engine.json").write_text(text)
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert lacks in done.stderr


TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then
    echo '&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --help'
    printf '%s\\n' {options}
    exit 1
fi
printf '%s\\n' "$@" > arguments
for argument; do case $argument in --saveEngine=*) echo plan > "${{argument#--saveEngine=}}";; esac; done
"""


@pytest.mark.parametrize(
    ("version", "options", "expected"),
    [
        ("8601", "--fp16 --int8", ["--int8"]),
        ("100300", "--fp16 --int8 --stronglyTyped", ["--int8"]),
        ("101600", "--fp16 --int8 --stronglyTyped", ["--stronglyTyped"]),
        ("110400", "--onnx", []),
    ],
)
def test_the_shell_script_follows_the_same_rules(
    version: str, options: str, expected: list[str], tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "student.onnx", "int8")
    request = request_for(path, "10", workspace_mb=256, batch=(1, 2, 4))
    script = tmp_path / "build_engine.sh"
    script.write_text(shell_script(request, read_source(path)))
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(TRTEXEC.format(version=version, options=options))
    trtexec.chmod(0o755)
    environment = {"TRTEXEC": str(trtexec), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, cwd="/", env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--onnx=student.onnx", "--saveEngine=student.engine.part", "--minShapes=images:1x3x8x8",
        "--optShapes=images:2x3x8x8", "--maxShapes=images:4x3x8x8", "--memPoolSize=workspace:256", *expected,
    ]  # fmt: skip
    assert (tmp_path / "student.engine").read_text() == "plan\n"
    environment["TRTEXEC"] = "/nowhere"
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: no trtexec at /nowhere")
