"""The grid of a benchmark with a stand-in for training: order, locks, failures, what is made again."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from edgeda.benchmark import LEFT, benchmark
from edgeda.benchmark_recipe import folder_name
from edgeda.console import TrainingDisplay
from edgeda.errors import Diverged, InputError, Interrupted
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe

VALUES: dict[str, Any] = {
    "name": "small",
    "data": {"source": "a", "target": "b"},
    "teacher": {"backbone": "r50"},
    "benchmark": {
        "scenarios": {
            "A->B": {"source": "a", "target": "b", "target_test": "b-test"},
            "B->A": {"source": "b", "target": "a"},
        },
        "methods": {
            "KD-UDA": None,
            "KD-UDA, MCC": {"adapt.alignment": ["mcc"]},
            "source only": {"method": "source-only"},
        },
    },
}
NOTHING: Mapping[str, Any] = MappingProxyType({})


def recipe(folder: Path, changes: Mapping[str, Any] = NOTHING, **section: Any) -> Recipe:
    values = {**VALUES, "benchmark": {**VALUES["benchmark"], **section}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_recipe(str(folder / "recipe.yaml"), changes)


class Training:
    """Stands in for `adapt`: writes what a run writes, and does before it what a test asks for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool, bool]] = []
        self.recipes: list[Recipe] = []
        self.before: Callable[[str], None] = lambda cell: None

    def __call__(self, recipe: Recipe, out: Path, watcher: object, resume: bool, overwrite: bool, shared: Path) -> None:
        cell = "/".join(out.parts[-3:])
        assert shared == out.parents[2] / ".shared"
        self.calls.append((cell, resume, overwrite))
        self.recipes.append(recipe)
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        self.before(cell)
        target = {"last": 1.0, "selected": 2.0, "oracle": 3.0}
        accuracy = {"student": {"target": target}}
        (out / "summary.json").write_text(json.dumps({"accuracy": accuracy}), encoding="utf-8")

    @property
    def cells(self) -> list[str]:
        return [cell for cell, _, _ in self.calls]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    stand_in = Training()
    monkeypatch.setattr("edgeda.benchmark.adapt", stand_in)
    return stand_in


def run(folder: Path, asked: Recipe, seeds: int = 1, **options: Any) -> dict[str, Any]:
    return benchmark(asked, range(seeds), folder / "out", TrainingDisplay(), **options)


def test_seed_by_seed_then_scenario_then_method_with_source_only_first(training: Training, tmp_path: Path):
    run(tmp_path, recipe(tmp_path), seeds=2)
    first = [
        "A-to-B/source-only/seed-0", "A-to-B/KD-UDA/seed-0", "A-to-B/KD-UDA-MCC/seed-0",
        "B-to-A/source-only/seed-0", "B-to-A/KD-UDA/seed-0", "B-to-A/KD-UDA-MCC/seed-0",
    ]  # fmt: skip
    assert training.cells == first + [cell.replace("seed-0", "seed-1") for cell in first]


def test_a_cell_has_its_scenario_its_method_and_its_seed(training: Training, tmp_path: Path):
    run(tmp_path, recipe(tmp_path, {"distill.tau": 4}), seeds=2, only=["KD-UDA, MCC"], scenarios=["B->A"])
    assert training.cells == ["B-to-A/KD-UDA-MCC/seed-0", "B-to-A/KD-UDA-MCC/seed-1"]
    made = training.recipes[1]
    assert (made.data.source, made.data.target, made.data.target_test) == ("b", "a", None)
    assert (made.adapt.alignment, made.train.seed, made.distill.tau) == (("mcc",), 1, 4.0)
    assert made.benchmark is None


def test_finished_cells_are_kept_and_half_finished_ones_go_on(training: Training, tmp_path: Path):
    asked = recipe(tmp_path)
    run(tmp_path, asked, only=["KD-UDA"])
    (tmp_path / "out" / "B-to-A" / "KD-UDA" / "seed-0" / "summary.json").unlink()
    training.calls.clear()
    result = run(tmp_path, asked, only=["KD-UDA"])
    assert training.calls == [("B-to-A/KD-UDA/seed-0", True, False)]
    assert result["missing"] == []


def test_a_cell_that_fails_is_noted_and_the_others_go_on(training: Training, tmp_path: Path):
    def diverge(cell: str) -> None:
        if cell.startswith("A-to-B/KD-UDA/"):
            raise Diverged("the loss is\nnot finite")

    training.before = diverge
    asked = recipe(tmp_path)
    result = run(tmp_path, asked)
    assert len(training.calls) == 6
    gap = {"scenario": "A->B", "method": "KD-UDA", "seed": 0, "reason": "the loss is not finite"}
    assert result["missing"] == [gap]
    training.before = lambda cell: pytest.fail("nothing is trained for a report")
    assert run(tmp_path, asked, report=True)["missing"] == [gap]

    training.before = lambda cell: None
    assert run(tmp_path, asked)["missing"] == []
    assert not list((tmp_path / "out").rglob("*.txt"))


@pytest.mark.parametrize("lock", ["run", "benchmark"])
def test_a_cell_of_another_process_is_left_to_it_and_looked_at_again(training: Training, tmp_path: Path, lock: str):
    out = tmp_path / "out"
    cell = out / "A-to-B" / "source-only" / "seed-0"
    path = cell / ".lock" if lock == "run" else out / ".locks" / "A-to-B--source-only--seed-0"
    for folder in (out / ".locks", path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    asked = recipe(tmp_path)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = run(tmp_path, asked, only=["source only"])
        assert training.cells == ["B-to-A/source-only/seed-0"]
        expected = {"run": LEFT, "benchmark": "not begun"}[lock]
        assert [gap["reason"] for gap in result["missing"]] == [expected]

        training.calls.clear()
        training.before = lambda cell: fcntl.flock(file, fcntl.LOCK_UN)
        assert run(tmp_path, asked, only=["source only", "KD-UDA"])["missing"] == []
    assert training.cells == ["A-to-B/KD-UDA/seed-0", "B-to-A/KD-UDA/seed-0", "A-to-B/source-only/seed-0"]


def test_a_cell_that_another_process_begins_meanwhile_is_not_a_failure(training: Training, tmp_path: Path):
    out = tmp_path / "out" / "A-to-B" / "KD-UDA" / "seed-0"
    held = []

    def begin(cell: str) -> None:
        held.append((out / ".lock").open("w"))
        fcntl.flock(held[0], fcntl.LOCK_EX)
        raise InputError("another process is training")

    training.before = begin
    result = run(tmp_path, recipe(tmp_path), only=["KD-UDA"], scenarios=["A->B"])
    assert [gap["reason"] for gap in result["missing"]] == [LEFT]
    assert len(training.calls) == 1
    held[0].close()


def test_a_run_directory_whose_process_died_at_once_is_used(training: Training, tmp_path: Path):
    folder = tmp_path / "out" / "A-to-B" / "KD-UDA" / "seed-0"
    (tmp_path / "out" / ".locks").mkdir(parents=True)
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    training.before = lambda cell: pytest.fail("left over") if (folder / ".lock").exists() else None
    assert run(tmp_path, recipe(tmp_path), only=["KD-UDA"], scenarios=["A->B"])["missing"] == []


def test_a_cell_of_another_recipe_is_refused_before_anything_is_trained(training: Training, tmp_path: Path):
    run(tmp_path, recipe(tmp_path), only=["KD-UDA"], scenarios=["B->A"])
    training.calls.clear()
    with pytest.raises(
        InputError, match=r"distill.tau: the cell .*B-to-A/KD-UDA/seed-0 has 20.0, now 4.0 .*--overwrite"
    ):
        run(tmp_path, recipe(tmp_path, {"distill.tau": 4}))
    assert training.calls == []
    # cells that agree are kept
    run(tmp_path, recipe(tmp_path), only=["source only"], scenarios=["B->A"])
    training.calls.clear()
    changed = recipe(tmp_path, methods={"KD-UDA": {"distill.tau": 4}, "source only": {"method": "source-only"}})
    run(tmp_path, changed, scenarios=["B->A"], overwrite=True)
    assert training.calls == [("B-to-A/KD-UDA/seed-0", False, True)]


def test_what_the_machine_decides_is_not_another_recipe(training: Training, tmp_path: Path):
    def decide(cell: str) -> None:
        path = tmp_path / "out" / cell / "recipe.yaml"
        values = yaml.safe_load(path.read_text())
        values["teacher"]["backbone"] = "resnet50"
        values["method"] = values["method"].replace("ccmdn", "cckdn")
        values["train"] |= {"threads": 16, "device": "cuda", "precision": "bf16"}
        path.write_text(yaml.safe_dump(values))

    training.before = decide
    methods = {"KD-UDA": {}, "CCMDN": {"method": "ccmdn"}}
    run(tmp_path, recipe(tmp_path, methods=methods))
    training.calls.clear()
    assert (
        run(tmp_path, recipe(tmp_path, {"train.checkpoint_minutes": 5, "data.cache_gb": 3}, methods=methods))["missing"]
        == []
    )
    assert training.calls == []
    with pytest.raises(InputError, match=r"train\.precision: the cell .* has bf16, now fp32"):
        run(tmp_path, recipe(tmp_path, {"train.precision": "fp32"}, methods=methods))


def test_an_interruption_leaves_a_table_and_says_how_to_go_on(training: Training, tmp_path: Path):
    def stop(cell: str) -> None:
        if cell == "A-to-B/KD-UDA-MCC/seed-0":
            raise Interrupted("stopped")

    training.before = stop
    with pytest.raises(Interrupted, match=r"2 of 6 cells are finished, .*benchmark.md; the same command goes on"):
        run(tmp_path, recipe(tmp_path))
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "| source only | student | 2.0 | - | - | 1 |" in text
    assert "- A->B, KD-UDA, MCC, seed 0: begun and not finished" in text
    assert "- B->A, KD-UDA, seed 0: not begun" in text


def test_a_damaged_summary_is_a_gap(training: Training, tmp_path: Path):
    asked = recipe(tmp_path)
    run(tmp_path, asked)
    (tmp_path / "out" / "A-to-B" / "KD-UDA" / "seed-0" / "summary.json").write_text("{")
    (gap,) = run(tmp_path, asked, report=True)["missing"]
    assert "is not JSON" in gap["reason"]


def test_the_first_kd_uda_is_the_reference_unless_one_is_named(training: Training, tmp_path: Path):
    asked = recipe(tmp_path)
    assert run(tmp_path, asked)["reference"] == "KD-UDA"
    assert run(tmp_path, asked, only=["source only", "KD-UDA, MCC"])["reference"] == "KD-UDA, MCC"
    assert run(tmp_path, asked, only=["source only"])["reference"] is None
    assert run(tmp_path, asked, reference="source only")["reference"] == "source only"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ["KDUDA"]}, "--only KDUDA: .*did you mean 'KD-UDA'"),
        ({"scenarios": ["A-B"]}, "--scenario A-B: .*did you mean 'A->B'"),
        ({"reference": "kd"}, "--reference kd: "),
        ({"report": True}, "nothing to report"),
    ],
)
def test_requests_that_make_no_sense(training: Training, tmp_path: Path, options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        run(tmp_path, recipe(tmp_path), **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_users_is_not_written_to(training: Training, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "benchmark.md").write_text("mine")
    for report in (False, True):
        with pytest.raises(InputError, match="not a benchmark's folder"):
            run(tmp_path, recipe(tmp_path), report=report)
    assert (tmp_path / "out" / "benchmark.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"method": "kd-dua"}, "unknown method 'kd-dua'"), ({"adapt.alignment": ["mmc"]}, "unknown alignment 'mmc'")],
)
def test_an_unknown_method_or_alignment_is_known_before_anything_is_trained(
    training: Training, tmp_path: Path, changes: dict[str, Any], said: str
):
    asked = recipe(tmp_path, methods={"KD-UDA": {}, "other": changes})
    with pytest.raises(InputError, match=f"benchmark method 'other': {said}"):
        run(tmp_path, asked)
    assert training.calls == []


def refusal(folder: Path, **section: Any) -> str:
    with pytest.raises(InputError) as caught:
        recipe(folder, **section)
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"methods": {"X": {"adapt.alignmnt": ["mcc"]}}}, "(benchmark method 'X'): unknown key 'adapt.alignmnt'; "
         "did you mean 'adapt.alignment'?"),
        ({"methods": {"X": {"distill.tau": "hot"}}}, "(benchmark method 'X'): distill.tau: "),
        ({"methods": {"X": {"method.tau": 1}}}, "method.tau: 'method' is a value, not a group of keys"),
        ({"methods": {"X": {"adapt": {"alignment": ["mcc"]}}}}, "X: write the keys of 'adapt' dotted"),
        ({"methods": {"X": {"train.seed": 1}}}, "X: 'train.seed' is not a method's to change"),
        ({"methods": {"X": {"data.source": "a"}}}, "X: 'data.source' is not a method's to change"),
        ({"scenarios": {"S": {"source": "a", "target": "b", "set": {"train.seed": 1}}}},
         "S: 'train.seed' is not a scenario's to change"),
        ({"scenarios": {"S": {"source": "a", "target": "b", "set": {"train.epoch": 1}}}},
         "(benchmark scenario 'S'): unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ({"methods": {"X y": {}, "x, Y": {}}}, "'X y' and 'x, Y' would share the folder x-y"),
        ({"methods": {}}, "benchmark.methods"),
        ({"scenarios": {"average": {"source": "a", "target": "b"}}}, "'average' cannot be a name"),
        ({"scenarios": {"->": {"source": "a", "tagret": "b"}}},
         "unknown key 'benchmark.scenarios.->.tagret'; did you mean 'benchmark.scenarios.->.target'?"),
        ({"published": [{"form": "P", "values": {}}]}, "did you mean 'benchmark.published.0.from'?"),
        ({"published": [{"from": "P", "values": {"KD_UDA": {}}}]}, "unknown method 'KD_UDA'; did you mean 'KD-UDA'?"),
        ({"published": [{"from": "P", "values": {"KD-UDA": {"A>B": 1}}}]}, "unknown scenario 'A>B'; did you mean"),
        ({"published": [{"from": "P", "values": {"KD-UDA": {"A->B": 811}}}]}, "KD-UDA.A->B: "),
        ({"metods": {}}, "unknown key 'benchmark.metods'; did you mean 'benchmark.methods'?"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_refused_when_it_is_loaded(tmp_path: Path, section: dict[str, Any], said: str):
    message = refusal(tmp_path, **section)
    assert said in message
    assert str(tmp_path / "recipe.yaml") in message
    assert "\n" not in message


def test_a_runs_resolved_recipe_has_no_benchmark(tmp_path: Path):
    asked = recipe(tmp_path)
    assert asked.benchmark is not None
    assert "benchmark" not in yaml.safe_load(asked.to_yaml())
    assert "benchmark" not in asked.model_dump_json(), "nor does what a checkpoint is compared by"


@pytest.mark.parametrize(
    ("name", "folder"),
    [("A->W", "A-to-W"), ("UDA, MCC", "UDA-MCC"), ("CDAN+E", "CDAN+E"), ("../x", "x"), ("Büro 1", "Büro-1")],
)
def test_names_as_folders(name: str, folder: str):
    assert folder_name(name) == folder


def test_a_scenarios_keys_hold_in_it_alone_and_a_methods_own_go_before_them(tmp_path: Path, training: Training):
    scenarios = {
        "A->B": {"source": "a", "target": "b", "set": {"train.epochs": 7, "distill.tau": 3.0}},
        "B->A": {"source": "b", "target": "a"},
    }
    methods = {"KD-UDA": None, "hot": {"distill.tau": 9.0}}
    run(tmp_path, recipe(tmp_path, scenarios=scenarios, methods=methods))
    found = [(made.train.epochs, made.distill.tau) for made in training.recipes]
    assert found == [(7, 3.0), (7, 9.0), (20, 20.0), (20, 9.0)]


def test_another_teacher_leaves_cells_without_one_as_they_are(tmp_path: Path, training: Training):
    run(tmp_path, recipe(tmp_path))
    with pytest.raises(InputError, match=r"teacher.backbone: the cell .*KD-UDA"):
        run(tmp_path, recipe(tmp_path, {"teacher.backbone": "r34"}))
    done = len(training.calls)
    run(tmp_path, recipe(tmp_path, {"teacher.backbone": "r34"}), only=["source only"])
    assert len(training.calls) == done
