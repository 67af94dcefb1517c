"""Bad input: one clear line, exit 2, nothing written, nothing lost."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import TINY, Edgeda, Folders, write_digits


def adapt(command: Edgeda, folders: Folders, *more: object, **replaced: Path):
    spec = {"source": folders.source, "target": folders.target, "target-test": folders.target_test, **replaced}
    named = [word for name, path in spec.items() for word in (f"--{name.replace('_', '-')}", path)]
    return command("adapt", *named, *TINY, "--epochs", 1, "--out", "run", *more)


def refused(ran, *words: str) -> None:
    """Exit 2, one line with these words, and no run directory."""
    assert ran.code == 2, ran.err
    for word in words:
        assert word in ran.error
    assert not Path("run").exists()


def test_no_such_folder(command: Edgeda, folders: Folders):
    refused(adapt(command, folders, source=Path("nowhere")), "no such folder or file: nowhere")
    refused(adapt(command, folders, target=Path("nowhere")), "no such folder or file: nowhere")
    refused(adapt(command, folders, target_test=Path("nowhere")), "nowhere")


def test_a_source_with_one_class_or_none(command: Edgeda, folders: Folders, tmp_path: Path):
    write_digits(tmp_path / "one", 3, 0, "png", classes="7")
    refused(adapt(command, folders, source=tmp_path / "one"), "only the class '7'")
    (tmp_path / "none").mkdir()
    refused(adapt(command, folders, source=tmp_path / "none"), "no images in")
    shutil.copytree(folders.source / "0", tmp_path / "flat")
    refused(adapt(command, folders, source=tmp_path / "flat"), "no class folders")


def test_an_empty_target(command: Edgeda, folders: Folders, tmp_path: Path):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    refused(adapt(command, folders, target=tmp_path / "empty"), "no images in", "target")


def test_only_broken_images_in_the_target(command: Edgeda, folders: Folders, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "zero.png").touch()
    (broken / "text.jpg").write_text("not an image")
    refused(adapt(command, folders, target=broken), "no readable image", "2 skipped")


def test_broken_images_are_skipped_counted_and_listed(edgeda: Edgeda, folders: Folders, tmp_path: Path):
    target = tmp_path / "target"
    shutil.copytree(folders.target, target)
    whole = next(iter(target.rglob("*.jpg"))).read_bytes()
    (target / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (target / "zero.png").touch()
    (target / "notes.txt").write_text("hello")
    ran = edgeda(
        "adapt", "--source", folders.source, "--target", target, *TINY, "--epochs", 1, "--out", tmp_path / "r", "--json"
    )
    assert ran.code == 0, ran.err
    skipped = "\n".join(ran.json["skipped"]["target"])
    assert len(ran.json["skipped"]["target"]) == 3
    assert all(name in skipped for name in ("truncated.jpg", "zero.png", "notes.txt"))
    assert "target: 3 of 35 files skipped" in ran.err


def test_classes_that_differ_are_named(command: Edgeda, folders: Folders, tmp_path: Path):
    shutil.copytree(folders.target_test, tmp_path / "test")
    (tmp_path / "test" / "3").rename(tmp_path / "test" / "three")
    refused(adapt(command, folders, target_test=tmp_path / "test"), "'three'", "'3'", "differ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "teacher.backbone=r51"], ["unknown backbone 'r51'", "did you mean"]),
        (["--set", "student.backbone=resnet81"], ["unknown backbone 'resnet81'"]),
        (["--method", "kd-dua"], ["unknown method 'kd-dua'", "did you mean 'kd-uda'"]),
        (["--alignment", "mdd_"], ["unknown alignment 'mdd_'"]),
        (["--alignment", "mcc,mcc"], ["error: --alignment: 'mcc' is named twice", "adapt.weight"]),
        (["--alignment", ""], ["unknown alignment ''"]),
        (["--set", "distill.tua=3"], ["unknown key 'distill.tua'", "did you mean 'distill.tau'"]),
        (["--set", "distill.tau=hot"], ["distill.tau", "'hot'"]),
        (["--set", "nonsense"], ["expected key=value"]),
        (["--select", "best"], ["error: --select: input should be", "'best'"]),
        (["--precision", "int3"], ["error: --precision: input should be", "'int3'"]),
        (["--batch-size", "1"], ["error: --batch-size: input should be", "got 1"]),
        (["--epochs", "0"], ["error: --epochs: input should be", "got 0"]),
        (["--seed", "-1"], ["error: --seed: "]),
        (["--devices", "5000"], ["error: --devices: ", "got 5000"]),
        (["--cache-gb", "-1"], ["error: --cache-gb: "]),
        (["--set", "train.epochs=0"], ["error: recipe default: train.epochs: input should be", "got 0"]),
        (["--epochs", "3", "--set", "train.epochs=0"], ["error: recipe default: train.epochs: "]),
        (["--recipe", "papr"], ["no such recipe file or preset: papr", "did you mean 'paper'"]),
        (["--set", "teacher.pretrained=missing.pth"], ["no such weights file", "missing.pth"]),
        (["--resume"], ["nothing to resume in run"]),
        (["--epoch", "3"], ["No such option", "--epoch"]),
        (["--select", "oracle", "--set", "data.target_test=null"], ["oracle", "--target-test"]),
    ],
)
def test_requests_that_make_no_sense(command: Edgeda, folders: Folders, arguments: list[str], words: list[str]):
    refused(adapt(command, folders, *arguments), *words)


def test_a_value_in_a_file_is_said_by_its_key(command: Edgeda, folders: Folders, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 0}")
    asked = (*folders.arguments, "--recipe", tmp_path / "mine.yaml")
    assert f"recipe {tmp_path / 'mine.yaml'}: train.epochs: " in command("adapt", *asked).error
    assert "--seed: " in command("adapt", *asked, "--epochs", 3, "--seed", -1).error
    assert "train.epochs: " in command("adapt", *asked, "--seed", 1).error, "that option is not to blame"


def test_source_without_target(command: Edgeda, folders: Folders):
    ran = command("adapt", "--source", folders.source)
    assert ran.code == 2
    assert "--target is missing" in ran.error


@pytest.mark.parametrize("arguments", [["--source", "lab"], ["--set", "distil.tau=4"], ["--epochs", "-3"]])
def test_what_is_wrong_with_a_request_is_said_before_torch_is_imported(
    command: Edgeda, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    monkeypatch.setitem(sys.modules, "edgeda.adapt", None)
    ran = command("adapt", *arguments)
    assert (ran.code, ran.error.startswith("error: ")) == (2, True), ran.err
    assert "edgeda.adapt" not in ran.err


def test_an_existing_run_is_not_touched_without_being_told(command: Edgeda, folders: Folders, run_directory: Path):
    before = {path.name: path.stat().st_mtime_ns for path in run_directory.iterdir()}
    ran = command("adapt", *folders.arguments, *TINY, "--out", run_directory)
    assert ran.code == 2
    assert "--resume" in ran.error
    assert "--overwrite" in ran.error
    ran = command("adapt", "--source", "nowhere", "--target", "nowhere", "--out", run_directory, "--overwrite")
    assert ran.code == 2
    assert {path.name: path.stat().st_mtime_ns for path in run_directory.iterdir()} == before


def test_a_folder_of_the_user_is_never_overwritten(command: Edgeda, folders: Folders, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "cat.png")
    ran = command("adapt", *folders.arguments, *TINY, "--out", tmp_path / "photos", "--overwrite")
    assert ran.code == 2
    assert "not a run directory" in ran.error
    assert (tmp_path / "photos" / "cat.png").is_file()
    assert len(list((tmp_path / "photos").iterdir())) == 1


@pytest.mark.parametrize("verb", ["evaluate", "export", "profile", "compare"])
def test_models_that_are_none(command: Edgeda, verb: str, tmp_path: Path):
    data = ["--data", "mnist-test"] if verb == "evaluate" else []
    ran = command(verb, "nowhere/at/all", *data)
    assert ran.code == 2
    assert "nowhere/at/all" in ran.error
    ran = command(verb, *data)
    assert ran.code == 2
    assert "edgeda adapt" in ran.error, "without any run the next step is said"


def test_an_unfinished_run_says_how_to_finish_it(command: Edgeda, run_directory: Path, tmp_path: Path):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run_directory / "recipe.yaml", half)
    for verb in ("export", "compare"):
        ran = command(verb, half)
        assert ran.code == 2
        assert f"edgeda adapt --out {half} --resume" in ran.error


def test_a_damaged_checkpoint_and_damaged_weights(command: Edgeda, run_directory: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run_directory, copy)
    summary = (copy / "summary.json").read_text()
    (copy / "summary.json").unlink()
    state = copy / "checkpoint" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    ran = command("adapt", "--out", copy, "--resume")
    assert ran.code == 2
    assert "damaged" in ran.error
    (copy / "summary.json").write_text(summary)
    (copy / "student.safetensors").write_bytes(b"rubbish")
    ran = command("export", copy)
    assert ran.code == 2
    assert "student.safetensors" in ran.error


def test_debug_shows_the_traceback(command: Edgeda, folders: Folders):
    ran = command("adapt", "--source", "nowhere", "--target", "nowhere", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err


def test_a_folder_with_a_foreign_recipe_is_not_a_run(command: Edgeda, folders: Folders, tmp_path: Path):
    (tmp_path / "cooking" / "plots").mkdir(parents=True)
    (tmp_path / "cooking" / "recipe.yaml").write_text("pancakes: yes")
    (tmp_path / "cooking" / "plots" / "mine.png").write_text("mine")
    ran = command("adapt", *folders.arguments, *TINY, "--out", tmp_path / "cooking", "--overwrite")
    assert ran.code == 2
    assert "not a run directory" in ran.error
    assert (tmp_path / "cooking" / "plots" / "mine.png").read_text() == "mine"


def test_a_run_that_another_process_trains_is_refused(command: Edgeda, run_directory: Path, tmp_path: Path):
    import fcntl

    out = tmp_path / "busy"
    shutil.copytree(run_directory, out)
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ran = command("adapt", "--recipe", out / "recipe.yaml", "--out", out, "--overwrite")
    assert ran.code == 2
    assert "another process" in ran.error
    assert (out / "student.safetensors").is_file()


def test_a_pipe_named_like_an_image_is_skipped(command: Edgeda, folders: Folders, tmp_path: Path):
    import os

    (tmp_path / "target").mkdir()
    os.mkfifo(tmp_path / "target" / "camera.png")
    refused(adapt(command, folders, target=tmp_path / "target"), "not a regular file")


def test_small_things_that_used_to_be_bugs(command: Edgeda, folders: Folders):
    refused(adapt(command, folders, "--recipe", ""), "no such recipe file or preset")
    refused(adapt(command, folders, target=Path("~nobody-of-that-name/x")), "no such path")
    refused(adapt(command, folders, "--set", "train.threads=1000000"), "train.threads")
    assert command("profile", "resnet10t", "--threads", 99999999999).code == 2


def test_export_of_the_network_the_verdict_asks_for(command: Edgeda, run_directory: Path, tmp_path: Path):
    ran = command("export", run_directory, "--role", "source_only", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["path"].endswith("source_only.onnx")
    assert "did you mean 'teacher'" in command("export", run_directory, "--role", "teachr").error


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--method", "source-only", "--alignment", "mmd"], ["source-only uses no alignment", "kd-uda"]),
        (["--method", "cckdn", "--alignment", "mmd", "--set", "distill.domains=[target]"],
         ["cckdn uses no alignment", "kd-uda, uda-then-kd, uda"]),
        (["--method", "uad"], ["unknown method 'uad'; did you mean 'uda'?"]),
        (["--method", "cckdn", "--set", "student.backbone=vit_tiny_patch16_224", "--set", "data.input_size=224"],
         ["cckdn needs features at strides 4, 8 and 32", "vit_tiny_patch16_224"]),
        (["--set", "adapt.technique=cckdn", "--set", "distill.end_to_end=true"], ["distill.end_to_end false"]),
        (["--set", "adapt.technique=cckd"], ["unknown adapt.technique 'cckd'; did you mean 'cckdn'?"]),
        (["--method", "kd-then-uda", "--set", "distill.domains=[target]"], ["distils on the source"]),
    ],
)  # fmt: skip
def test_what_a_method_cannot_use_is_said_before_training(
    command: Edgeda, folders: Folders, asked: list[str], words: list[str]
):
    refused(adapt(command, folders, *asked), *words)


def test_a_teacher_that_nobody_trains_is_said(command: Edgeda, folders: Folders, tmp_path: Path):
    ran = adapt(command, folders, "--method", "uda", "--teacher", "test_resnet")
    assert ran.code == 0
    assert "method uda trains no teacher: test_resnet is not used" in ran.err
