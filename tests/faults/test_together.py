"""Several at once: processes on one folder, on one cache, and threads on one model."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgeda.checkpoint import load_checkpoint
from edgeda.errors import InputError
from edgeda.run_folder import claim, clear
from edgeda.runtime import Classifier
from edgeda.stage_cache import StageCache
from edgeda.whole_file import HeldFolder, whole_file
from tests.conftest import Folders
from tests.faults.conftest import Site
from tests.faults.driver import ROOT, left_over, outcome


def test_the_lock_of_a_killed_run_is_no_lock(site: Site, tmp_path: Path):
    out = tmp_path / "run"
    assert site.driver.run(*site.adapt(out), below=out, at=3).code == -signal.SIGKILL
    assert (out / ".lock").is_file()
    assert site.again(out).code == 0
    assert outcome(out) == outcome(site.whole)


def test_a_second_process_on_a_folder_is_refused_until_the_first_is_gone(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from edgeda.whole_file import HeldFolder\n"
        "held = HeldFolder(Path(sys.argv[1]), 'exporting into'); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"another process is exporting into {tmp_path}; wait"):
            HeldFolder(tmp_path, "exporting into")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with HeldFolder(tmp_path, "exporting into"):
        assert list(tmp_path.iterdir()) == [], "no lock file"
    HeldFolder(tmp_path, "exporting into").release()


def test_two_exports_and_two_predictions_into_one_folder(site: Site, tmp_path: Path):
    """The second is refused, and what is there stays as it is."""
    exports, save = site.whole / "exports", tmp_path / "saved"
    before = {path.name: path.read_bytes() for path in exports.iterdir()}
    save.mkdir()
    with HeldFolder(exports, "exporting into"), HeldFolder(save, "saving predictions in"):
        ended = site.driver.run(*site.export(site.whole))
        assert ended.code == 2
        assert f"another process is exporting into {exports}" in ended.line
        ended = site.driver.run(*site.predict(save))
        assert ended.code == 2
        assert f"another process is saving predictions in {save}" in ended.line
    assert {path.name: path.read_bytes() for path in exports.iterdir()} == before
    assert list(save.iterdir()) == []


def test_a_run_that_another_process_finished_meanwhile_is_not_cleared(tmp_path: Path, site: Site):
    """Both claimed the folder while it did not exist; reading its images kept this one longer."""
    out = tmp_path / "run"
    from edgeda.recipe_file import load_recipe

    recipe = load_recipe(str(site.whole / "recipe.yaml"))
    assert claim(out, recipe, resume=False, overwrite=False) == out
    out.mkdir()
    (out / "recipe.yaml").write_text((site.whole / "recipe.yaml").read_text())
    (out / "student.safetensors").write_text("an hour's work")
    with pytest.raises(InputError, match="another process has made the run"):
        clear(out, overwrite=False)
    assert (out / "student.safetensors").read_text() == "an hour's work"
    clear(out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["recipe.yaml"]


def test_two_processes_decode_into_one_cache(folders: Folders, tmp_path: Path, environment: dict[str, str]):
    """Both get the same images, decoded once: one entry, whole, and no part."""
    code = (
        "import sys, hashlib; from pathlib import Path\n"
        "from edgeda.data.cache import SquareCache; from edgeda.data.opening import open_unlabelled\n"
        "from edgeda.data.images import decode; from edgeda.recipe import VideoRecipe\n"
        "from edgeda.runtime.preprocessing import Preprocessing\n"
        "sys.stdin.readline()\n"
        "for size in range(32, 48, 4):\n"
        "    domain = open_unlabelled(sys.argv[1], VideoRecipe())\n"
        "    found = decode(domain, Preprocessing(size), 'target', cache=SquareCache(10**9, Path(sys.argv[2])))\n"
        "    print(hashlib.sha256(found.squares[:].tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, str(folders.source), str(tmp_path / "squares")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert len(set(said[0])) == 4
    assert sorted(path.suffix for path in (tmp_path / "squares").iterdir()) == [".squares"] * 4


def test_ten_classifiers_in_threads_say_what_one_says(site: Site, folders: Folders):
    paths = sorted(folders.target.rglob("*.jpg"))
    model = site.whole / "exports" / "student.onnx"
    wanted = np.stack([one.probabilities for one in Classifier(model, "onnxruntime", 1)(paths)])

    def classify(number: int) -> np.ndarray:
        order = np.random.default_rng(number).permutation(len(paths))
        found = np.stack(
            [one.probabilities for one in Classifier(model, "onnxruntime", 1)([paths[at] for at in order])]
        )
        return found[np.argsort(order)]

    with ThreadPoolExecutor(10) as pool:
        for found in pool.map(classify, range(10)):
            assert np.allclose(found, wanted, rtol=0, atol=1e-6)


def test_a_file_is_whole_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write, fsync the file, rename, fsync the folder: what a power cut leaves is the old file or the new one."""
    path, calls = tmp_path / "file", []
    path.write_text("old")
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, path.read_text()))
        fsync(descriptor)

    def watched_replace(source: Path, place: Path) -> None:
        calls.append(("rename", Path(source).name, path.read_text()))
        replace(source, place)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert calls == [
        ("fsync", "file.part", "old"), ("rename", "file.part", "old"), ("fsync", tmp_path.name, "new"),
    ]  # fmt: skip
    with pytest.raises(OSError, match="cable"), whole_file(path) as temporary:  # noqa: PT012 - two of them
        temporary.write_text("half of")
        raise OSError("cable")
    assert path.read_text() == "new"
    assert not left_over(tmp_path)


def test_a_stage_that_a_killed_process_was_saving_is_removed_and_one_that_is_being_saved_is_not(tmp_path: Path):
    left, live, other = (tmp_path / name for name in ("joint-ab.7.part", "joint-ab.8.part", "joint-cd.7.part"))
    for folder in (left, live, other):
        folder.mkdir()
        (folder / "state.safetensors.part").write_bytes(b"half of it")
    with HeldFolder(live, "saving"):
        object.__new__(StageCache)._save(tmp_path / "joint-ab", {"position": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joint-ab", "joint-ab.8.part", "joint-cd.7.part"]
    assert load_checkpoint(tmp_path / "joint-ab") == {"position": 1}


def test_a_stage_that_another_holds_is_left_to_it_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A process of the same number on a node of the same name, in two containers; or one that sweeps."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(platform, "node", lambda: "gate")
    theirs = tmp_path / "joint-ab.gate-7.part"
    theirs.mkdir()
    with HeldFolder(theirs, "saving"):
        object.__new__(StageCache)._save(tmp_path / "joint-ab", {"position": 1})
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]
    assert "a stage is not left to other runs: another process is saving" in caplog.text
