"""Places that cannot be written are refused before anything is read or made; images that cannot be read are blamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edgeda.report.page import page
from edgeda.whole_file import check_writable
from tests.conftest import TINY, Edgeda, Folders


@pytest.fixture(params=["/proc/edgeda", "in-a-file"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that nobody can make, whoever runs the tests."""
    (tmp_path / "file").touch()
    return Path(request.param) if request.param.startswith("/") else tmp_path / "file" / "folder"


def test_commands_refuse_a_place_before_they_read_anything(command: Edgeda, run_directory: Path, nowhere: Path):
    gone = ["--source", "no-such-source", "--target", "no-such-target"]
    for arguments, option in (
        (["adapt", *gone, "--out", nowhere], "--out"),
        (["export", run_directory, "--images", "no-such-images", "--out", nowhere], "--out"),
        (["benchmark", "--recipe", "digits", "--seeds", 1, "--out", nowhere], "--out"),
    ):
        ran = command(*arguments)
        assert ran.code == 2
        assert f"cannot write to {nowhere}: " in ran.error
        assert f"choose another place with {option}" in ran.error


def test_predict_and_bundle_refuse_a_place_before_they_open_the_model(command: Edgeda, nowhere: Path, tmp_path: Path):
    (tmp_path / "rubbish.onnx").write_bytes(b"rubbish")
    (tmp_path / "photo.png").touch()
    for option in ("--save", "--collect"):
        ran = command("predict", tmp_path / "rubbish.onnx", "--source", tmp_path / "photo.png", option, nowhere)
        assert f"cannot write to {nowhere}: " in ran.error
        assert option in ran.error


def test_a_kit_needs_a_place(command: Edgeda, run_directory: Path, nowhere: Path, tmp_path: Path):
    shutil.copytree(run_directory, tmp_path / "run")
    assert command("export", tmp_path / "run").code == 0
    ran = command("bundle", tmp_path / "run", "--out", nowhere)
    assert (ran.code, "cannot write to" in ran.error, "--out" in ran.error) == (2, True, True)


@pytest.mark.parametrize(("verb", "option"), [("report", "--out"), ("compare", "--html")])
def test_a_page_of_the_users_is_not_replaced(run_directory: Path, command: Edgeda, tmp_path: Path, verb, option):
    (tmp_path / "index.html").write_text("<!doctype html><title>edgeda and me</title>")
    ran = command(verb, run_directory, option, tmp_path / "index.html")
    assert ran.code == 2
    assert "no page of edgeda" in ran.error
    assert (tmp_path / "index.html").read_text().endswith("edgeda and me</title>")
    (tmp_path / "ours.html").write_text(page("run", []))
    assert "no-such-run" in command(verb, "no-such-run", option, tmp_path / "ours.html").error


@pytest.mark.parametrize(("verb", "option"), [("report", "--out"), ("compare", "--html")])
def test_a_page_needs_a_place(command: Edgeda, run_directory: Path, verb: str, option: str):
    ran = command(verb, run_directory, option, "/proc/page.html")
    assert ran.code == 2
    assert "cannot write to /proc: " in ran.error
    assert option in ran.error


def test_looking_whether_a_place_can_be_written_leaves_nothing(tmp_path: Path):
    check_writable(tmp_path / "runs" / "one", "--out")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_read_are_blamed_themselves(
    command: Edgeda, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    closed = tmp_path / "closed"
    shutil.copytree(folders.source, closed)
    for name in ("listdir", "scandir"):
        real = getattr(os, name)

        def refused(path: object = ".", real: object = real) -> object:
            if str(path).startswith(str(closed)):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)  # type: ignore[operator]

        monkeypatch.setattr(os, name, refused)
    asked = ("adapt", *TINY, "--out", tmp_path / "run")
    ran = command(*asked, "--source", closed, "--target", folders.target)
    assert (ran.code, ran.error) == (2, f"error: Permission denied while reading {closed}")
    ran = command(*asked, "--source", folders.source, "--target", closed)
    assert ran.code == 2
    assert f"no images in {closed}: " in ran.error
    assert f"passed over: {closed} (cannot be opened: Permission denied)" in ran.error
    assert not (tmp_path / "run").exists()
