"""`edgeda adapt --method tcp` and `edgeda prune`, as a user runs them, and a stop in the middle of pruning."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from edgeda.adapt import adapt, adapt_recipe
from edgeda.errors import Interrupted
from edgeda.models import load_network, read_card
from edgeda.recipe import Recipe
from edgeda.recipe_file import read_recipe
from tests.conftest import TINY, Edgeda, Folders

PRUNING = ["--method", "tcp", "--epochs", 2, "--set", "prune.iterations=2"]


class Stopper:
    """A display that presses Ctrl-C after so many steps of a stage."""

    def __init__(self, stage: str = "", steps: int = 0) -> None:
        self.wanted, self.steps, self.at, self.seen = stage, steps, "", 0

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        self.at, self.seen = name, done

    def step(self, pairs: int) -> None:
        self.seen += 1
        if (self.at, self.seen) == (self.wanted, self.steps):
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            assert handler is not signal.default_int_handler, "training has its own"
            # called, not raised: a real signal needs a stack that other libraries in this process may have taken over
            handler(signal.SIGINT, None)

    def epoch(self, record: dict[str, Any]) -> None:
        pass


@pytest.fixture(scope="module")
def recipe(folders: Folders) -> Recipe:
    larger = [f"{role}.backbone=resnet10t" for role in ("teacher", "student")]  # GMACs of four places tell cuts apart
    pairs = [*(word for word in TINY if "=" in word), *larger]
    options = {
        "data.source": str(folders.source), "data.target": str(folders.target),
        "data.target_test": str(folders.target_test), "train.precision": "fp32", "train.batch_size": 8,
        "method": "tcp", "train.epochs": 2, "prune.iterations": 2, "train.threads": 1,
    }  # fmt: skip
    return adapt_recipe(None, options, pairs, None, False)


@pytest.fixture(scope="module")
def pruned(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "run"
    adapt(recipe, out, Stopper())
    return out


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_student_is_pruned_and_its_reference_is_not(pruned: Path):
    summary = json.loads((pruned / "summary.json").read_text())
    student, reference = summary["complexity"]["student"], summary["complexity"]["source_only"]
    assert 0.53 < student["gmacs"] / reference["gmacs"] <= 0.553, "0.55, of figures rounded to four places"
    assert student["params_m"] < reference["params_m"]
    assert summary["accuracy"]["student"]["target"]["selected"] is not None
    network, card = load_network(pruned / "student.safetensors")
    assert card.architecture.channels
    assert not read_card(pruned / "source_only.safetensors").architecture.channels
    conv = network.get_submodule("backbone.layer1.0.conv1")
    assert conv.weight.shape[0] == card.architecture.channels.get("backbone.layer1.0.conv1", 64)


def test_only_epochs_at_the_final_size_compete(pruned: Path):
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for line in lines(pruned):
        by_stage.setdefault(line["stage"], []).append(line)
    assert list(by_stage) == [
        "student warm-up", "source-only", "student adaptation", "tcp pruning", "tcp fine-tuning",
    ]  # fmt: skip
    assert [len(by_stage[name]) for name in ("tcp pruning", "tcp fine-tuning")] == [4, 2]
    assert all(not line["networks"] for line in by_stage["tcp pruning"])
    summary = json.loads((pruned / "summary.json").read_text())
    tuned = [line["networks"]["student"]["target_accuracy"] for line in by_stage["tcp fine-tuning"]]
    assert summary["accuracy"]["student"]["target"]["last"] == round(tuned[-1], 2)
    assert summary["accuracy"]["student"]["target"]["oracle"] == round(max(tuned), 2)


@pytest.mark.parametrize(
    ("stage", "steps"), [("tcp pruning", 3), ("tcp pruning", 6), ("tcp pruning", 10), ("tcp fine-tuning", 5)]
)
def test_a_stopped_run_goes_on_to_the_same_student(recipe: Recipe, pruned: Path, tmp_path: Path, stage, steps):
    """In the first scoring pass, after the first cut, in the second scoring pass, and at the final size."""
    with pytest.raises(Interrupted, match="--resume"):
        adapt(recipe, tmp_path / "run", Stopper(stage, steps))
    adapt(recipe, tmp_path / "run", Stopper(), resume=True)
    for role in ("student", "source_only"):
        assert (tmp_path / "run" / f"{role}.safetensors").read_bytes() == (pruned / f"{role}.safetensors").read_bytes()


def test_a_pruned_run_exports_and_profiles(command: Edgeda, pruned: Path):
    exported = command("export", pruned, "--onnx", "--json", "--out", "exported")
    assert exported.code == 0, exported.err
    student = json.loads((pruned / "summary.json").read_text())["complexity"]["student"]
    assert exported.json["manifest"]["gmacs"] == student["gmacs"]
    reference = command("export", pruned, "--role", "source_only", "--json", "--out", "reference")
    assert reference.json["manifest"]["gmacs"] > student["gmacs"]
    profiled = command("profile", "exported/student.onnx", "--engine", "onnxruntime", "--seconds", 0.05, "--json")
    assert profiled.code == 0, profiled.err
    assert profiled.json["rows"][0]["gmacs"] == pytest.approx(student["gmacs"], rel=0.03)  # BatchNorm is folded there


@pytest.mark.parametrize(("start", "role"), [("pruned", "student"), ("run_directory", "teacher")])
def test_prune_a_finished_run(command: Edgeda, request: pytest.FixtureRequest, start: str, role: str):
    """The student of a run that is pruned already is pruned further; a teacher becomes the student of its run."""
    run: Path = request.getfixturevalue(start)
    ran = command(
        "prune", run, "--macs-cut", 0.3, "--iterations", 1, "--epochs", 1, "--role", role, "--out", "small", "--json"
    )
    assert ran.code == 0, ran.err
    before = json.loads((run / "summary.json").read_text())["complexity"][role]
    assert 0.65 < ran.json["complexity"]["student"]["gmacs"] / before["gmacs"] <= 0.701
    assert ran.json["weights_from"]["student"].startswith(f"the run {run.name} ({role}.safetensors, sha256 ")
    assert [line["stage"] for line in lines(Path("small"))] == ["source-only", *["tcp pruning"] * 2, "tcp fine-tuning"]
    # the reference is the run's own, untouched
    assert Path("small/source_only.safetensors").read_bytes() == (run / "source_only.safetensors").read_bytes()
    name = read_recipe(str(run / "recipe.yaml"))["name"]
    assert read_recipe("small/recipe.yaml")["name"] == f"{name}-pruned"
    # BatchNorm learned in every batch: 4 that scored, 4 and 4 of fine-tuning, whatever the mode the file was loaded in
    counts = [
        load_network(path)[0].get_buffer("backbone.bn1.num_batches_tracked").item()
        for path in (run / f"{role}.safetensors", Path("small/student.safetensors"))
    ]
    assert counts[1] - counts[0] == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--macs-cut", 0], "--macs-cut: input should be greater than 0"),
        (["--macs-cut", 1], "--macs-cut: input should be less than 1"),
        (["--macs-cut", 45], "--macs-cut: input should be less than 1"),
        (["--macs-cut", "nan"], "--macs-cut: input should be a finite number"),
        (["--macs-cut", 0.99], "cut less, or lower prune.minimum"),
        (["--iterations", 0], "--iterations: input should be greater than or equal to 1"),
        (["--role", "sudent"], "--role sudent; did you mean 'student'?"),
        (["--role", "source_only"], "--role source_only"),
        (["--set", "student.backbone=r18"], "leave both alone"),
        (["--set", "prune.mimimum=4"], "did you mean 'prune.minimum'?"),
    ],
)
def test_what_prune_refuses(command: Edgeda, run_directory: Path, arguments: list[object], words: str):
    ran = command("prune", run_directory, "--epochs", 1, "--out", "never", *arguments)
    assert ran.code == 2, ran.err
    assert words in ran.error
    assert not Path("never").exists()


def test_prune_takes_a_run_and_does_not_replace_it(command: Edgeda, run_directory: Path):
    Path("model.onnx").write_bytes(b"exported")
    assert "is an exported model; this command needs the run directory" in command("prune", "model.onnx").error
    assert "no such model: nowhere" in command("prune", "nowhere").error
    before = (run_directory / "summary.json").read_bytes()
    assert "is the run that is pruned" in command("prune", run_directory, "--out", run_directory, "--overwrite").error
    assert (run_directory / "summary.json").read_bytes() == before


def test_a_backbone_that_cannot_be_pruned(command: Edgeda, folders: Folders):
    ran = command(
        "adapt", *folders.arguments, *TINY, *PRUNING, "--set", "student.backbone=mobilenetv3_small_050", "--out", "no"
    )
    assert ran.code == 2, ran.err
    assert "mobilenetv3_small_050 cannot be pruned" in ran.error
    assert not Path("no").exists()
