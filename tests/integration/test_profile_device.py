"""`edgeda profile --device ssh://...` on a real sshd on loopback; sessions there start from a clean environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeda.profiling.device import LIGHT, cargo, write_job
from tests.onnx_models import SMALL_MACS, small_classifier
from tests.sshd import Sshd, running_sshd

BLOCKED = ("torch", "timm", "fvcore", "safetensors", "onnx", "typer", "pydantic", "rich", "yaml", "openvino")
"""What no device needs: an import of one of these fails there."""


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, sshd: Sshd) -> Sshd:
    """The server, with this process's ssh told about its key."""
    for name, value in sshd.environment.items():
        monkeypatch.setenv(name, value)
    return sshd


def python_without(folder: Path, *packages: str) -> Path:
    """A Python in which these packages cannot be imported."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = f"import sys; sys.modules.update(dict.fromkeys({list(packages)!r}))\n"
    hooks = folder / "site"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(hidden)
    script = folder / "python"
    script.write_text(f"#!/bin/sh\nPYTHONPATH='{hooks}' OMP_NUM_THREADS=1 exec '{sys.executable}' \"$@\"\n")
    script.chmod(0o755)
    return script


def test_a_model_is_measured_there_and_nothing_stays(command, remote: Sshd, tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    Image.fromarray(np.full((20, 30, 3), 7, np.uint8)).save(tmp_path / "photo.png")
    python = python_without(tmp_path / "device", *BLOCKED)
    ran = command(
        "profile", path, "--device", remote.url, "--remote-python", python, "--seconds", 0.02, "--batch-size", "1,8",
        "--image", "photo.png", "--layers", "--estimate", "thor", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert remote.leftovers() == []
    found = ran.json
    assert found["device"] == remote.url
    assert [(row["engine"], row["batch"]) for row in found["rows"]] == [("onnxruntime", 1), ("onnxruntime", 8)]
    for row in found["rows"]:
        assert row["model"] == "small.onnx"
        assert round(row["gmacs"] * 1e9) == SMALL_MACS  # counted here: there is no onnx package there
        assert row["peak_memory_mb"] > 0
        assert row["note"] == ""
    assert found["rows"][0]["stages"]["image"] == "photo.png"
    assert found["machine"]["arch"]
    assert [row["device"] for row in found["estimates"]] == ["thor"]
    assert "check" not in found


def test_the_job_holds_no_more_than_a_device_needs(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    write_job(tmp_path / "job.zip", cargo([str(path)]), {}, None)
    names = zipfile.ZipFile(tmp_path / "job.zip").namelist()
    assert {name.split("/")[1] for name in names if name.startswith("edgeda/")} == set(LIGHT)
    assert {"__main__.py", "request.json", "models/0/small.onnx"} <= set(names)


def refused(command, path: Path, remote: Sshd, *more: object) -> tuple[int, str]:
    ran = command("profile", path, "--device", remote.url, "--seconds", 0.01, "--engine", "onnxruntime", *more)
    assert ran.out == ""
    assert remote.leftovers() == []
    return ran.code, ran.error


def test_no_python_an_old_one_or_nothing_installed_there(command, remote: Sshd, tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    code, said = refused(command, path, remote, "--remote-python", "python9")
    assert (code, "there is no python9; install Python 3.10" in said) == (3, True)
    bare = python_without(tmp_path / "bare", "numpy", "PIL")
    code, said = refused(command, path, remote, "--remote-python", bare)
    assert (code, "lacks numpy and pillow; install it there with:" in said) == (3, True)
    no_engine = python_without(tmp_path / "engine", "onnxruntime", "openvino")
    code, said = refused(command, path, remote, "--remote-python", no_engine)
    assert (code, "-m pip install onnxruntime" in said) == (3, True)
    code, said = refused(command, path, remote, "--engine", "onnxruntime-coreml", "--remote-python", sys.executable)
    assert (code, "ONNX Runtime of this machine has no CoreMLExecutionProvider for small.onnx" in said) == (3, True)
    old = python_without(tmp_path / "old")
    with (tmp_path / "old/site/sitecustomize.py").open("a") as hook:
        hook.write("sys.version_info = (3, 8, 10)\n")
    code, said = refused(command, path, remote, "--remote-python", old)
    assert (code, "Python 3.8 is too old there; edgeda needs 3.10 or later" in said) == (3, True)
    code, said = refused(command, path, remote, "--remote-python", "false")
    assert (code, "ended with code 1 there" in said) == (3, True)


def test_no_key_and_a_stranger_s_host_key(
    command, remote: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    monkeypatch.setenv("EDGEDA_SSH_OPTIONS", " ".join(remote.options_with(key="stranger")))
    code, said = refused(command, path, remote)
    assert (code, "accepts no key of yours" in said) == (3, True)
    (remote.folder / "other_hosts").write_text(
        f"[127.0.0.1]:{remote.port} {' '.join((remote.folder / 'stranger.pub').read_text().split()[:2])}\n"
    )
    monkeypatch.setenv("EDGEDA_SSH_OPTIONS", " ".join(remote.options_with(known_hosts="other_hosts")))
    code, said = refused(command, path, remote)
    assert (code, "another host key" in said) == (3, True)
    monkeypatch.setenv("EDGEDA_SSH_OPTIONS", " ".join(remote.options_with(known_hosts="none_yet")))
    code, said = refused(command, path, remote)
    assert (code, "is not known here; check and accept it once with: ssh -p" in said) == (3, True)


def test_a_host_that_is_down(command, tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    ran = command("profile", path, "--device", "ssh://nobody@127.0.0.1:1")
    assert ran.code == 3
    assert "cannot be reached" in ran.error


def test_a_measurement_that_takes_too_long_is_ended(command, remote: Sshd, tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    code, said = refused(command, path, remote, "--remote-python", slow, "--timeout", 1)
    assert (code, "did not finish within 1 s" in said) == (3, True)


@pytest.mark.parametrize("size_kb", [16, 500])
def test_a_full_disk_there(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_kb: int) -> None:
    """There is no room for the job, or only for the job and not for the model that is unpacked from it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(disk)], capture_output=True, check=False
    ) if os.geteuid() == 0 else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("a small disk that can be full needs root and the right to mount a tmpfs")
    try:
        (tmp_path / "server").mkdir()
        with running_sshd(tmp_path / "server", {"TMPDIR": str(disk)}) as server:
            monkeypatch.setenv("EDGEDA_SSH_OPTIONS", " ".join(server.options))
            path = small_classifier(tmp_path / "small.onnx")
            with path.open("ab") as stream:  # an unknown field of the format, which readers skip
                stream.write(b"\xa2\x7d\x80\x80\x14" + bytes(20 * 2**14))
            python = python_without(tmp_path / "device", *BLOCKED)
            ran = command("profile", path, "--device", server.url, "--remote-python", python)
            assert ran.code == (3 if size_kb < 100 else 2)
            assert "disk is full" in ran.error
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_cannot_run_there_is_said_before_connecting(command, tmp_path: Path) -> None:
    down = ("--device", "ssh://nobody@127.0.0.1:1")
    run = tmp_path / "night"
    run.mkdir()
    (run / "recipe.yaml").write_text("{}")
    ran = command("profile", run, *down)
    assert (ran.code, "has no exports, and a device has no torch" in ran.error) == (2, True)
    ran = command("profile", small_classifier(tmp_path / "small.onnx"), "--engine", "onnxruntimes", *down)
    assert (ran.code, "did you mean 'onnxruntime'" in ran.error) == (2, True)
    ran = command("profile", "r18", *down)
    assert (ran.code, "no such model: r18" in ran.error) == (2, True)
