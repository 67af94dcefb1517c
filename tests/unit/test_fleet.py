"""Fleets without Ray: FLEET.yaml, state, what a node must have, which stages cameras share, the page."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import pytest

from edgeda.errors import InputError, MachineError, MissingExtra
from edgeda.fleet.cluster import check_resources
from edgeda.fleet.recipe import load_fleet
from edgeda.fleet.report import failed_line, fleet_text, page, result_of, verdict_words
from edgeda.fleet.scheduler import _on_node, requests
from edgeda.fleet.state import Storage
from edgeda.methods import stages
from edgeda.stage_cache import for_any_target
from tests.conftest import Edgeda
from tests.workshop import recipe

CAMERAS = "cameras:\n  gate: gate/\n  yard: {target: yard/, target_test: yard-labelled/}\n"


def written(folder: Path, text: str) -> str:
    path = folder / "FLEET.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source: s\ncameras: {gate: a, gate: b}", "'gate' is there twice, in lines 2 and 2"),
        ("source: s\ncameras: {gate 1: a, Gate-1: b}", "'gate 1' and 'Gate-1' would share the folder"),
        ("source: s\ncameras: {}", "cameras: "),
        ("cameras: {gate: a}", "'source' is missing"),
        ("source: s\ncamera: {gate: a}", "unknown key 'camera'; did you mean 'cameras'?"),
        ("source: s\ncameras: {gate: {target: a, traget_test: b}}", "did you mean 'target_test'?"),
        ("source: s\nset: {data.target: x}\ncameras: {gate: a}", "'data.target' is decided by the fleet's own keys"),
        ("[1, 2]", "must be a mapping"),
        ("source: [", "is not YAML"),
    ],
)
def test_a_wrong_fleet_file_is_one_line_and_exit_code_2(command: Edgeda, tmp_path: Path, text: str, said: str):
    ran = command("fleet", written(tmp_path, text))
    assert ran.code == 2
    assert said in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["FLEET.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "FLEET.yaml is missing"),
        (["nowhere.yaml"], "no such fleet file: nowhere.yaml"),
        (["FLEET.yaml", "--workers", "2", "--address", "auto"], "--workers is for a Ray on this machine"),
        (["--status", "--out", "nowhere"], "no fleet's state in nowhere/state"),
        (["FLEET.yaml"], "no such recipe file or preset"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    command: Edgeda, tmp_path: Path, arguments: list[str], said: str
):
    written(tmp_path, "recipe: nothing\nsource: s\n" + CAMERAS)
    ran = command("fleet", *arguments)
    assert ran.code == 2
    assert said in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["FLEET.yaml"]


def test_each_camera_has_its_own_data_and_the_fleets_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate").mkdir()
    fleet = load_fleet(written(tmp_path, "recipe: default\nset: {distill.tau: 4}\nsource: mnist\n" + CAMERAS))
    gate, yard = (fleet.run_recipe(camera, tmp_path / "frames") for camera in fleet.cameras.values())
    assert (gate.data.source, gate.data.target, gate.data.target_test) == ("mnist", str(tmp_path / "gate"), None)
    assert (yard.data.target, yard.data.target_test) == ("yard/", "yard-labelled/")
    assert gate.distill.tau == yard.distill.tau == 4.0


def test_without_ray_it_says_which_extra_brings_it(command: Edgeda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = importlib.import_module

    def missing(name: str, package: str | None = None):
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return plain(name, package)

    monkeypatch.setattr("edgeda.errors.importlib.import_module", missing)
    ran = command("fleet", written(tmp_path, "source: s\n" + CAMERAS), "--out", "o")
    assert ran.code == MissingExtra.exit_code
    assert "pip install 'edgeda[ray]'" in ran.error


def test_what_no_node_has_is_refused_before_anything_runs():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    check_resources(nodes, "a", 4, 0)
    check_resources(nodes, "b", 2, 1)
    with pytest.raises(MachineError, match=r"b asks for 4 CPUs and 1 GPUs.* of 2 nodes has 4 CPUs and 1 GPUs"):
        check_resources(nodes, "b", 4, 1)


def test_what_a_recipe_asks_of_a_node():
    assert requests(recipe())[1:] == (1, 0)
    resolved, cpus, gpus = requests(recipe(train={"threads": 3, "device": "cuda"}))
    assert (resolved.train.threads, cpus, gpus) == (3, 3, 1)


def test_on_a_node_every_failure_is_a_record(tmp_path: Path):
    def wrong(work: dict) -> dict:
        raise ZeroDivisionError("by zero")

    def stop(work: dict) -> dict:
        raise KeyboardInterrupt

    work = {"cwd": str(tmp_path), "driver": "another"}
    version = importlib.import_module("edgeda").__version__
    assert "has edgeda" in _on_node(wrong, "0.0.0", work)["reason"]
    assert "internal error: ZeroDivisionError: by zero" in _on_node(wrong, version, work)["reason"]
    assert "on node" in _on_node(wrong, version, work)["reason"]
    assert _on_node(stop, version, work) == {"status": "stopped"}
    gone = _on_node(wrong, version, {**work, "cwd": str(tmp_path / "gone")})
    assert f"there is no folder {tmp_path / 'gone'}" in gone["reason"]


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_state_is_replaced_whole_wherever_it_is(tmp_path: Path, scheme: str):
    storage = Storage(f"{scheme}{tmp_path}/state")
    assert storage.read("cameras/gate") is None
    storage.write("cameras/gate", {"status": "waiting"})
    storage.write("cameras/gate", {"status": "finished"})
    assert Storage(f"{scheme}{tmp_path}/state").read("cameras/gate") == {"status": "finished"}
    assert not list(tmp_path.rglob("*.part"))


def test_damaged_state_and_unknown_storage_are_named(tmp_path: Path):
    (tmp_path / "fleet.json").write_text("{")
    with pytest.raises(InputError, match=r"fleet\.json is damaged"):
        Storage(str(tmp_path)).read("fleet")
    with pytest.raises(InputError, match="cannot be kept in nosuch://x"):
        Storage("nosuch://x")


def test_cameras_share_what_trains_on_the_source_and_nothing_that_sees_the_target():
    warm = recipe(train={"warmup_epochs": 2})
    assert for_any_target(stages(warm)) == ["student warm-up", "teacher warm-up", "source-only"]
    assert for_any_target(stages(recipe())) == ["source-only"]
    assert for_any_target(stages(recipe(method="kd-then-uda", train={"warmup_epochs": 1}))) == [
        "student warm-up", "teacher warm-up", "source-only", "teacher on the source",
    ]  # fmt: skip


def test_a_key_of_group_is_compared_with_those_of_group(tmp_path: Path):
    with pytest.raises(InputError, match=r"unknown key 'group.distnce'; did you mean 'distance'\?"):
        load_fleet(written(tmp_path, f"source: s\ngroup: {{distnce: 0.3}}\n{CAMERAS}"))


def test_the_text_ends_with_where_models_are_and_what_failed_with_what_tries_it_again():
    about = {"name": "site", "out": "runs/site", "source": "lab", "cameras": {"gate": "gate/", "yard": "yard/"}}
    finished = {"status": "finished", "verdict": "adapted", "seconds": 2.5}
    result = result_of(about, {"gate": finished, "yard": {"status": "failed", "reason": "no such folder: yard/"}})
    assert fleet_text(result, 100).endswith("page: runs/site/fleet.html; each camera's model: fleet.json")
    assert failed_line(result) == (
        "1 of 2 cameras failed: yard: no such folder: yard/; "
        "`edgeda fleet` with the same recipe and --out tries again what failed"
    )


def test_a_student_that_guesses_is_not_ready_to_ship():
    about = {"name": "site", "out": "o", "source": "lab", "cameras": {"gate": "gate/", "yard": "yard/"}}
    gate = {"status": "finished", "verdict": "adapted", "why": "its predictions say more", "seconds": 2.5,
            "caveat": "the adapted student is close to guessing (im 0.01 of at most 2.3): train longer"}  # fmt: skip
    result = result_of(about, {"gate": gate, "yard": {**gate, "caveat": None}})
    assert [verdict_words(row) for row in result["cameras"]] == ["adapted, not ready to ship", "ship adapted"]
    assert (result["verdicts"], result["ready"]) == ({"adapted": 2}, 1)
    assert result["cameras"][0]["note"] == f"not ready to ship: {gate['caveat']}; its predictions say more"
    text = fleet_text(result, 300)
    assert "2 finished; 1 of 2 ready to ship (1 adapted)" in text
    assert text.count("adapted, not ready to ship") == 1
    assert "2 finished; 0 of 2 ready to ship\n" in fleet_text(result_of(about, {"gate": gate, "yard": gate}), 300)
    assert page(result).index("ship adapted (1)") < page(result).index("adapted, not ready to ship (1)")


def test_the_page_is_by_verdict_and_escapes_names():
    about = {"name": "<site>", "out": "o", "source": "lab", "cameras": {"a&b": "t", "c": "t", "d": "t"}}
    records = {
        "a&b": {"status": "finished", "verdict": "adapted", "why": "says \x07 more", "seconds": 2.5,
                "accuracy": {"student": 81.25, "source_only": 70.0}},
        "c": {"status": "failed", "reason": "no <such> folder"},
        "d": {"status": "running", "node": "n", "stage": "joint", "epoch": 1, "heard": time.time() - 3600},
    }  # fmt: skip
    result = result_of(about, records)
    assert result["counts"] == {"finished": 1, "failed": 1, "running": 1}
    assert result["cost_s"] == 2.5
    text = page(result)
    assert "<h1>&lt;site&gt;</h1>" in text
    assert "a&amp;b" in text
    assert "no &lt;such&gt; folder" in text
    assert text.index("ship adapted (1)") < text.index("running (1)") < text.index("failed (1)")
    assert "no sign of life for 60 minutes" in text
    assert "says \N{REPLACEMENT CHARACTER} more" in text
    assert "Content-Security-Policy" in text
    assert "://" not in text
