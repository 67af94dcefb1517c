"""The doctor on this installation, and on worse ones."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from edgeda.doctor import EXTRAS, diagnose, doctor_text, instruction_sets
from edgeda.profiling.machine import machine


@pytest.fixture(scope="module")
def owners() -> dict[str, list[str]]:
    """Which distributions own which modules here; listing them takes most of a second."""
    return dict(importlib.metadata.packages_distributions())


@pytest.fixture(autouse=True)
def known_owners(owners: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file starts from them."""
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: owners)


def ability(found: dict[str, Any], start: str) -> dict[str, Any]:
    """The ability whose name begins so."""
    (match,) = (each for each in found["abilities"] if each["what"].startswith(start))
    return dict(match)


def test_this_installation_is_told_as_it_is() -> None:
    found = diagnose()
    json.dumps(found, allow_nan=False)
    train = found["extras"]["train"]
    assert train["packages"]["torch"] == importlib.metadata.version("torch")
    assert train["complete"] == all(train["packages"].values())
    text = doctor_text(found)
    assert found["machine_line"] in text
    assert max(len(line) for line in text.split("\n\n")[1].split("\n")) <= 80


def test_a_missing_package_names_its_extra_and_what_it_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    found = diagnose()
    assert found["extras"]["openvino"]["packages"] == {"openvino": None}
    assert not found["extras"]["train"]["complete"]
    assert ability(found, "run with OpenVINO") == {
        "what": "run with OpenVINO",
        "able": False,
        "detail": "openvino not installed: pip install 'edgeda[openvino]'",
    }
    assert ability(found, "train")["detail"] == "timm not installed: pip install 'edgeda[train]'"
    text = doctor_text(found)
    assert "missing: run models with OpenVINO (pip install 'edgeda[openvino]')" in text
    cells = {" ".join(line.split()) for line in text.splitlines()}
    assert "openvino no run models with OpenVINO missing: openvino" in cells, "the table says it, too"


def test_every_cell_says_something_and_tensorrt_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("edgeda.doctor.machine", lambda: machine() | {"gpus": [{"name": "A GPU"}]})
    found = diagnose()
    assert all(each["detail"] for each in found["abilities"])
    assert ability(found, "use TensorRT")["detail"] == "tensorrt not installed: pip install 'edgeda[gpu]'"
    assert "(pip install 'edgeda[gpu]')" in doctor_text(found)


def test_a_machine_for_deployment_has_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "torchvision", "timm", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    found = diagnose()
    assert not ability(found, "train")["able"]
    assert ability(found, "run .onnx")["able"]
    assert found["warnings"] == []


def test_without_onnxruntime_the_extra_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = ability(diagnose(), "export to ONNX")
    assert said["detail"] == "onnxruntime not installed: pip install 'edgeda[cpu]'"
    assert not said["able"]


def test_a_broken_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found = diagnose()
    assert any("torch is installed but broken: libcudart" in line for line in found["warnings"])
    assert ability(found, "train") == {"what": "train", "able": False, "detail": "torch is broken"}
    assert not found["extras"]["train"]["complete"]


def test_what_an_uninstalled_runtime_leaves_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    found = diagnose()
    assert any("onnxruntime is installed but broken: only its folder is left" in line for line in found["warnings"])
    assert not ability(found, "run .onnx")["able"]


def test_both_onnxruntimes_at_once_are_a_warning(owners: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    both = {**owners, "onnxruntime": ["onnxruntime", "onnxruntime-gpu"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: both)
    found = diagnose()
    assert any("onnxruntime and onnxruntime-gpu overwrite each other" in line for line in found["warnings"])
    assert "warning: onnxruntime and onnxruntime-gpu" in doctor_text(found)


def fake_runtime(*providers: str) -> types.ModuleType:
    """An ONNX Runtime that says it has these."""
    module = types.ModuleType("onnxruntime")
    module.__file__ = "onnxruntime/__init__.py"
    module.__spec__ = importlib.machinery.ModuleSpec("onnxruntime", None)
    module.get_available_providers = lambda: list(providers)  # type: ignore[attr-defined]
    return module


def test_tensorrt_and_cuda_depend_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake_runtime("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    gpus: list[dict[str, str]] = []
    monkeypatch.setattr("edgeda.profiling.machine.nvidia_gpus", lambda: gpus)
    without = diagnose()
    assert any("lists CUDA without a GPU" in line for line in without["warnings"])
    assert ability(without, "use TensorRT")["detail"] == "no NVIDIA GPU or driver here"
    assert "edgeda[gpu]" not in doctor_text(without)

    gpus.append({"name": "NVIDIA T4", "driver": "550.1", "memory": "15360 MiB"})
    with_gpu = diagnose()
    assert not any("without a GPU" in line for line in with_gpu["warnings"])
    assert "tensorrt not installed: pip install 'edgeda[gpu]'" in ability(with_gpu, "use TensorRT")["detail"]
    assert "edgeda[gpu]" in doctor_text(with_gpu)


def test_instruction_sets_say_what_is_fast() -> None:
    old = instruction_sets(frozenset({"avx2", "fma"}))
    assert old["flags"] == ["avx2"]
    assert any("bf16 is not faster" in line for line in old["meaning"])
    assert any("int8 gains less" in line for line in old["meaning"])
    new = instruction_sets(frozenset({"avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8", "avx512_bf16"}))
    assert set(new["flags"]) == {"avx2", "avx512f", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16"}
    assert not any("not faster" in line or "gains less" in line for line in new["meaning"])
    assert "asimddp" in instruction_sets(frozenset({"asimd", "asimddp"}))["flags"]
    assert instruction_sets(frozenset())["flags"] == []


def test_the_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = declared["project"]["optional-dependencies"]
    named = {name: {line.split(">")[0].split("=")[0].split("[")[0] for line in lines} for name, lines in extras.items()}
    named.pop("dev")
    assert {name: set(extra.packages) for name, extra in EXTRAS.items()} == named
