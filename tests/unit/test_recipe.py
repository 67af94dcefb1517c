"""Recipes: what a user writes, what a run repeats, and what a wrong key or value is answered with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from edgeda.errors import InputError
from edgeda.recipe_file import load_recipe, parse_set, preset_names, read_recipe

DATA = {"data.source": "here", "data.target": "there"}


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(source: str | None, overrides: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The one line that a recipe is refused with; without a source, the preset `paper` on some data."""
    with pytest.raises(InputError) as caught:
        load_recipe(source or "paper", overrides if source else {**DATA, **overrides})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("preset", ["default", "digits", "paper"])
def test_a_resolved_recipe_loads_to_an_equal_one(preset, tmp_path):
    recipe = load_recipe(preset, {**DATA, "data.source": "Büro/Kamera 1", "data.augment.scale": [0.5, 2]})
    assert recipe.to_yaml().startswith(f"name: {preset}\nmethod: ")
    assert "\n  source: Büro/Kamera 1\n" in recipe.to_yaml(), "for people to read"
    again = load_recipe(written(tmp_path, recipe.to_yaml()))
    assert again == recipe.model_copy(update={"benchmark": None}), "what a benchmark runs is no part of a run"
    assert again.data.source == "Büro/Kamera 1"
    assert again.data.augment.scale == (0.5, 2.0)


def test_a_resolved_recipe_says_everything():
    # every field is there, so that a later change of a default does not change an old run
    written_out = yaml.safe_load(load_recipe("paper", DATA).to_yaml())
    assert written_out["train"]["checkpoint_minutes"] == 2.0
    assert written_out["student"]["momentum"] == 0.9
    assert written_out["data"]["video"] == {"every_s": 0.5, "max_frames": 5000}


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("distill.tua", "distill.tau"),
        ("trian", "train"),
        ("teacher.learning_rate", None),
        ("data.augment.rotat", "data.augment.rotate"),
        ("train.epoch", "train.epochs"),
    ],
)
def test_an_unknown_key_names_its_nearest(key, nearest):
    message = refusal(None, {key: 1})
    assert f"unknown key '{key}'" in message
    if nearest:
        assert message.endswith(f"did you mean '{nearest}'?")
    else:
        assert "known here: backbone, pretrained, bottleneck, lr," in message


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    path = written(tmp_path, "data: {source: a, target: b}\ndistill: {tua: 4}\n")
    message = refusal(path)
    assert path in message
    assert "'distill.tua'; did you mean 'distill.tau'?" in message


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("2E-1", 0.2), ("5", 5.0), ("0.25", 0.25)])
def test_a_number_is_a_number_however_it_is_written(text, value, tmp_path):
    # YAML 1.1 reads 1e-3 as a string
    path = written(tmp_path, f"data: {{source: a, target: b}}\nstudent: {{backbone: r18, lr: {text}}}\n")
    recipe = load_recipe(path)
    assert recipe.student.lr == value
    assert isinstance(recipe.student.lr, float)
    assert load_recipe("paper", {**DATA, **parse_set([f"student.lr={text}"])}).student.lr == value


def test_a_recipe_cannot_be_changed():
    recipe = load_recipe("paper", DATA)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.distill.tau = 2.0
    assert recipe.distill.tau == 20.0


def test_set_reads_yaml_values():
    pairs = [
        "distill.tau=4", "data.target_test=", "train.seed = 3", "data.mean=[0, 0.5, 1e-1]",
        "data.source=a=b.txt", "data.augment.flip=true", "adapt.alignment=[mmd, mcc]",
    ]  # fmt: skip
    assert parse_set(pairs) == {
        "distill.tau": 4,
        "data.target_test": None,
        "train.seed": 3,
        "data.mean": [0, 0.5, "1e-1"],
        "data.source": "a=b.txt",
        "data.augment.flip": True,
        "adapt.alignment": ["mmd", "mcc"],
    }
    recipe = load_recipe("paper", {**DATA, **parse_set(pairs)})
    assert recipe.data.mean == (0.0, 0.5, 0.1)
    assert recipe.data.target_test is None
    assert recipe.adapt.alignment == ("mmd", "mcc")


def test_a_later_set_wins():
    assert parse_set(["distill.tau=4", "distill.tau=5"]) == {"distill.tau": 5}


@pytest.mark.parametrize("pair", ["distill.tau", "=4", "distill..tau=4", ".tau=1", "distill.tau.=1", "a b=1", ""])
def test_set_without_key_or_value(pair):
    with pytest.raises(InputError, match=r"expected key=value, such as --set distill\.tau=4"):
        parse_set([pair])


@pytest.mark.parametrize("pair", ["distill.tau=[4", "name='x", "name=2020-13-45", "a={b: c: d}"])
def test_set_with_a_value_that_is_not_yaml(pair):
    with pytest.raises(InputError, match="the value is not YAML"):
        parse_set([pair])


def test_an_override_lies_over_the_file(tmp_path):
    path = written(tmp_path, "data: {source: a, target: b}\ndistill: {tau: 7, alpha: 0.3}\n")
    recipe = load_recipe(path, {"distill.tau": 2})
    assert (recipe.distill.tau, recipe.distill.alpha) == (2.0, 0.3)


def test_an_override_below_a_value_is_refused():
    message = refusal(None, {"name.first": "x"})
    assert message == "name.first: 'name' is a value, not a group of keys"
    assert "'distill.tau' is a value" in refusal(None, {"distill.tau.start": 1})


def test_presets():
    assert {"default", "digits", "paper"} <= set(preset_names())
    for name in preset_names():
        recipe = load_recipe(name, DATA)
        assert recipe.name == name
        assert (recipe.data.source, recipe.data.target) == ("here", "there")


def test_the_default_recipe_asks_for_the_data():
    # `default` and `paper` are for the user's own images: they name none
    for preset in ("default", "paper"):
        assert "'data.source' is missing" in refusal(preset)


def test_the_paper_preset_is_the_paper():
    # KD-UDA, sections III and IV-C
    recipe = load_recipe("paper", DATA)
    assert (recipe.method, recipe.adapt.alignment) == ("kd-uda", ("mmd",))
    assert (recipe.distill.tau, recipe.distill.alpha, recipe.distill.beta) == (20.0, 0.8, (0.1, 0.9))
    assert recipe.distill.recompute_teacher
    assert not recipe.distill.end_to_end
    assert recipe.adapt.gamma_on == "classification"
    assert recipe.adapt.weight == 1.0
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.warmup_epochs) == (400, 32, 0)
    for network in (recipe.teacher, recipe.student):
        assert (network.lr, network.head_lr_multiplier, network.momentum) == (1e-3, 1.0, 0.9)
        assert (network.lr_schedule, network.lr_warmup, network.weight_decay) == ("constant", 0.0, 0.0)
        assert network.bottleneck == 0
    assert (recipe.data.input_size, recipe.data.source_holdout) == (224, 0.0)
    assert recipe.select.rule == "last"


def test_no_preset_chooses_by_target_labels():
    assert {load_recipe(name, DATA).select.rule for name in preset_names()} <= {"im", "snd", "last"}


def test_preprocessing_is_the_recipes_geometry():
    geometry = {"input_size": 32, "resize": "squash", "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.5]}
    found = load_recipe(None, {**DATA, **{f"data.{key}": value for key, value in geometry.items()}}).data.preprocessing
    assert (found.size, found.resize, found.stored_size) == (32, "squash", 32)
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    # crop: the shorter side becomes 224 / 0.875
    assert load_recipe(None, DATA).data.preprocessing.stored_size == 256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {source: a\n", "is not YAML"),
        (b"data: 2020-13-45\n", "is not YAML"),
        (b"a: \x00\n", "is not YAML"),
        (b"- source\n- target\n", "must be a mapping of keys to values, not a list"),
        (b"just words\n", "must be a mapping of keys to values, not a str"),
        ("source: Köln".encode("latin-1"), "cannot be read as UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "cannot be read as UTF-8 text"),
    ],
)
def test_a_file_that_is_no_recipe(content, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    found = refusal(str(path))
    assert message in found
    assert str(path) in found


def test_an_empty_file_is_the_defaults(tmp_path):
    path = written(tmp_path, "# nothing yet\n")
    assert read_recipe(path) == {}
    recipe = load_recipe(path, DATA)
    assert (recipe.teacher.backbone, recipe.student.backbone) == ("resnet50", "resnet18")


def test_no_such_recipe_names_the_nearest_preset():
    assert refusal("digitz").endswith("no such recipe file or preset: digitz; did you mean 'digits'?")
    assert f"known: {', '.join(preset_names())}" in refusal("/no/such/file.yaml")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf", ".inf"])
@pytest.mark.parametrize("key", ["distill.tau", "student.lr", "adapt.weight"])
def test_a_number_is_finite(key, value):
    assert f"{key}: input should be" in refusal(None, {key: value})


def test_numbers_in_ranges_are_finite():
    assert "data.augment.scale.1" in refusal(None, {"data.augment.scale": [1.0, float("inf")]})
    assert "data.mean.0" in refusal(None, {"data.mean": [float("nan"), 0.5, 0.5]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distill.tau", 0), ("student.lr", -1e-3), ("student.momentum", 1.1), ("train.epochs", 0),
        ("train.batch_size", 1), ("train.batch_size", 2.5), ("data.source_holdout", 0.95), ("data.input_size", 8),
        ("data.resize", "stretch"), ("select.rule", "best"), ("data.std", [0.5, 0.5, 0]),
        ("train.precision", "int8"), ("teacher.backbone", None),
        ("distill.beta", [0.1, 1.5]), ("train.seed", -1), ("train.seed", 2**64),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(key, value):
    message = refusal(None, {key: value})
    assert message.startswith(f"recipe paper: {key}")
    assert "(got " in message


@pytest.mark.parametrize("scale", [[2.0, 1.0], [0.0, 1.0]])
def test_a_range_begins_with_its_smaller_end(scale):
    message = refusal(None, {"data.augment.scale": scale})
    assert message.startswith("recipe paper: data.augment: scale must be two positive numbers, the smaller first (got")


def test_a_list_that_is_too_short_says_which_value_is_missing():
    assert refusal(None, {"data.mean": [0.5, 0.5]}) == "recipe paper: 'data.mean.2' is missing"
