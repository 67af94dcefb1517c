"""What a worker does for a camera, without Ray: looks, groups, served cameras, sampled streams, drift."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from edgeda.artifacts import RunDirectory
from edgeda.errors import InputError
from edgeda.fleet import fleet_status
from edgeda.fleet.camera import check_camera, look_at
from edgeda.fleet.look import alike, apart, look
from edgeda.fleet.plan import Plan
from edgeda.fleet.recipe import load_fleet
from edgeda.fleet.report import page
from edgeda.fleet.sampling import sample
from edgeda.fleet.served import try_serving
from edgeda.fleet.state import FLEET, Storage, camera_key
from edgeda.recipe import VideoRecipe
from edgeda.report.summary import cautioned
from tests.conftest import Folders, write_digits


def squares(light: float, count: int = 64, seed: int = 0) -> np.ndarray:
    """Noise of a mean light, uint8 `(N, 32, 32, 3)`; each image a little brighter or darker than the others."""
    random = np.random.default_rng(seed)
    means = light + random.normal(0, 8, (count, 1, 1, 1))
    return np.clip(means + random.normal(0, 30, (count, 32, 32, 3)), 0, 255).astype(np.uint8)


def test_looks_of_the_same_light_are_near_and_of_another_far():
    bright, again, dark = look(squares(160)), look(squares(160, seed=1)), look(squares(60))
    assert apart(bright, bright)[0] == 0.0
    assert apart(bright, again)[0] < 0.35
    assert apart(bright, dark) == (1.0, "red")
    assert apart(dark, bright, enough=0.5)[0] > 0.5


def test_a_camera_joins_the_nearest_earlier_one_and_those_that_represent_others_do_not():
    looks = [("a", look(squares(160))), ("b", look(squares(60))), ("c", look(squares(160, seed=1))),
             ("d", look(squares(62, seed=2))), ("e", look(squares(240)))]  # fmt: skip
    found = alike(looks, 0.4)
    assert {name: of for name, (of, _) in found.items()} == {"c": "a", "d": "b"}
    assert found["c"][1] == pytest.approx(apart(looks[2][1], looks[0][1])[0], abs=1e-4)
    assert alike(looks, 0.0) == {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, folders: Folders) -> Iterator[tuple[Path, pytest.MonkeyPatch]]:
    """A recipe, and a camera `again` with the images of `yard`, `night` with inverted ones."""
    root = tmp_path_factory.mktemp("site")
    network = {"backbone": "test_resnet", "pretrained": "none"}
    tiny = {
        "data": {"source": "", "target": "", "input_size": 32, "resize": "squash", "crop_pct": 1.0},
        "teacher": network, "student": network,
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
    }  # fmt: skip
    (root / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    write_digits(root / "yard", 8, 20, "png")
    shutil.copytree(root / "yard", root / "again")
    for path in sorted((root / "yard").rglob("*.png")):
        new = root / "night" / path.name
        new.parent.mkdir(exist_ok=True)
        Image.fromarray(255 - np.asarray(Image.open(path))).save(new)
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGEDA_CACHE", str(root / "cache"))
    yield root, patch
    patch.undo()


def plan_of(root: Path, folders: Folders, **changes: Any) -> Plan:
    values = {
        "recipe": str(root / "tiny.yaml"), "source": str(folders.source),
        "cameras": {
            "yard": str(root / "yard"), "again": {"target": str(root / "again"), "target_test": str(root / "yard")},
            "night": str(root / "night"),
        },
        "group": {"distance": 0.2, "cost": 1.0}, **changes,
    }  # fmt: skip
    (root / "FLEET.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (root / "out").mkdir(exist_ok=True)
    return Plan(load_fleet(str(root / "FLEET.yaml")), root / "out", Storage(str(root / "out" / "state")))


def test_cameras_that_are_the_same_share_a_student_and_others_do_not(
    site: tuple[Path, pytest.MonkeyPatch], folders: Folders
):
    root, _ = site
    plan = plan_of(root, folders)
    plan.check()
    for job in plan.looks():
        assert job.function(job.work) == {"status": "looked"}
    assert plan_of(root, folders).looks() == []  # looked at once
    jobs = {job.name: job for job in plan.cameras()}
    assert {name: job.after for name, job in jobs.items()} == {
        "yard": "the look of yard", "again": "yard", "night": "the look of night",
    }  # fmt: skip
    for name in jobs:
        record = jobs[name].function(jobs[name].work)
        plan.storage.write(jobs[name].work["key"], record)
    records = {name: plan.storage.read(job.work["key"]) for name, job in jobs.items()}
    yard, again, night = records["yard"], records["again"], records["night"]
    assert "group" not in yard
    assert "group" not in night
    assert again["served_by"] == "yard"
    assert again["group"] == {"of": "yard", "distance": 0.0, "cost": 0.0}  # the same images: no difference
    assert (again["verdict"], again["training_s"]) == (yard["verdict"], 0.0)
    assert yard["caveat"] == cautioned(RunDirectory(root / "out" / "cameras" / "yard").summary()) is not None  # 1 epoch
    assert "close to guessing" in again["caveat"]
    assert again["accuracy"]["student"] is not None
    assert Path(again["model"]).is_relative_to(root / "out" / "served" / "again")
    assert not (root / "out" / "cameras" / "again").exists()
    assert night["shift"]["distance"] > 0.9 > yard["shift"]["distance"]

    # a cost that may not be paid: the student is not taken
    run = RunDirectory(root / "out" / "cameras" / "yard")
    tried, shipped = try_serving(plan.run_recipe("night")[0].data, run, most=-1.0)
    assert shipped is None
    assert tried["cost"] >= 0.0

    # without `group` what was served is to be done; with it nothing is
    assert plan_of(root, folders).todo == []
    assert plan_of(root, folders, group=None).todo == ["again"]

    # nothing has drifted until the camera sees something else
    plan = plan_of(root, folders)
    checks = {job.name: job for job in plan.checks()}
    assert [check_camera(checks[name].work)["drift"]["drifted"] for name in checks] == [False, False, False]
    shutil.rmtree(root / "again")
    shutil.copytree(root / "night", root / "again")
    drift = check_camera(checks["again"].work)["drift"]
    assert drift["drifted"]
    assert drift["distance"] > drift["threshold"]
    plan.storage.write(checks["again"].work["key"], {**again, "drift": drift})
    plan.storage.write(FLEET, {"name": "site", "out": "o", "source": "s", "cameras": dict.fromkeys(jobs, "t")})
    result = fleet_status(plan.storage.place)
    text = page(result)
    assert "served by yard&#x27;s student (distance 0.0, cost 0.0 points)" in text
    assert f"drifted by {drift['when']}: {drift['statistic']} {drift['distance']:.2f} apart" in text
    assert [row["drifted"] for row in result["cameras"]] == [None, True, None]


@pytest.mark.parametrize(
    ("about", "camera"),
    [
        ({}, None),
        ({"name": "site", "out": "o", "source": "s", "cameras": 3}, None),
        ({"name": "site", "out": "o", "source": "s", "cameras": {"gate": "g"}}, {"status": "running", "heard": 1.0}),
        ({"name": "site", "out": "o", "source": "s", "cameras": {"gate": "g"}}, {"accuracy": 3}),
    ],
)
def test_a_state_that_says_too_little_is_called_damaged(tmp_path: Path, about: dict[str, Any], camera: Any):
    storage = Storage(str(tmp_path))
    storage.write(FLEET, about)
    if camera is not None:
        storage.write(camera_key("gate"), camera)
    with pytest.raises(InputError, match="is damaged"):
        fleet_status(str(tmp_path))


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[str]:
    """A film of 30 frames that a server on this machine sends."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    (tmp_path / "web").mkdir()
    film = cv2.VideoWriter(str(tmp_path / "web" / "gate.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 48))
    for number in range(30):
        film.write(np.full((48, 48, 3), (0, 0, 40 + 6 * number), np.uint8))
    film.release()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/gate.avi"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stream_is_sampled_for_its_minutes_and_is_a_camera_like_others(stream: str, tmp_path: Path):
    frames = sample(stream, 1.0 / 60, VideoRecipe(every_s=0), tmp_path / "frames" / "gate")
    paths = sorted(frames.iterdir())
    assert len(paths) >= 2
    assert int(paths[-1].stem) <= 1000  # a second, in milliseconds from the first frame
    red, _, blue = np.asarray(Image.open(paths[0])).mean(axis=(0, 1))
    assert red > blue + 20  # channels in their order
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert sample("rtsp://127.0.0.1:9/gone", 1.0, VideoRecipe(), frames) == frames  # what is there is taken
    assert {path: path.stat().st_mtime_ns for path in frames.iterdir()} == before
    work = {"recipe": None, "stream": {"address": stream, "minutes": 0.01}, "state": f"memory://{tmp_path}",
            "look": "looks/gate"}  # fmt: skip
    camera = load_fleet_camera(tmp_path, stream)
    work["recipe"] = camera
    assert look_at(work) == {"status": "looked"}
    assert Storage(f"memory://{tmp_path}").read("looks/gate")["images"] == len(paths)


def load_fleet_camera(root: Path, address: str) -> dict[str, Any]:
    """The recipe of a fleet with one stream, as a worker gets it."""
    values = {"source": "mnist", "cameras": {"gate": {"target": address, "sample_minutes": 0.01}}}
    (root / "FLEET.yaml").write_text(yaml.safe_dump(values))
    fleet = load_fleet(str(root / "FLEET.yaml"))
    return fleet.run_recipe(fleet.cameras["gate"], root / "frames" / "gate").model_dump(mode="json")


def test_a_stream_that_does_not_come_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    monkeypatch.setattr("edgeda.runtime.sources.FIRST_WAIT_S", 0.01)
    with pytest.raises(InputError, match=r"no frames from http://\*\*\*@127.0.0.1:9/gate.avi in 3 tries"):
        sample("http://me:secret@127.0.0.1:9/gate.avi", 1.0, VideoRecipe(), tmp_path / "frames" / "gate")
    assert list((tmp_path / "frames").iterdir()) == []


@pytest.mark.parametrize(
    ("camera", "said"),
    [
        ({"target": "rtsp://me:secret@10.0.0.9/gate"}, "the stream rtsp://***@10.0.0.9/gate needs sample_minutes"),
        ({"target": 0}, "the stream 0 needs sample_minutes"),
        ({"target": "yard/", "sample_minutes": 5}, "sample_minutes is for streams, and yard/ is none"),
    ],
)
def test_a_stream_needs_its_minutes_and_nothing_else_has_any(tmp_path: Path, camera: dict[str, Any], said: str):
    (tmp_path / "FLEET.yaml").write_text(yaml.safe_dump({"source": "s", "cameras": {"gate": camera}}))
    with pytest.raises(InputError, match="cameras") as caught:
        load_fleet(str(tmp_path / "FLEET.yaml"))
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
