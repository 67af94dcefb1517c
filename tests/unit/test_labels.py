"""Labels of source, target and target-test against each other, and the hold-out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edgeda.data import ImageSet, load_domains, load_test
from edgeda.data.opening import open_labelled
from tests.image_trees import (
    GREYS,
    SIXTEEN,
    class_tree,
    data_recipe,
    picture,
    refusal,
)

# --- source, target and target-test against each other ---------------------------------------------------------------


def test_a_source_of_one_class(tmp_path):
    class_tree(tmp_path, ("cat",))
    message = refusal(data_recipe(source=tmp_path, target=tmp_path), call=load_domains)
    assert message == (
        f"the source {tmp_path} has only the class 'cat'; it needs two or more class folders with images"
    )


def test_a_source_of_no_class(tmp_path):
    (tmp_path / "cat").mkdir()
    assert "no images in" in refusal(data_recipe(source=tmp_path, target=tmp_path), call=load_domains)


def test_a_target_test_with_a_class_the_source_has_not(tmp_path):
    class_tree(tmp_path / "source", ("cat", "dog"))
    class_tree(tmp_path / "test", ("cat", "eel"))
    recipe = data_recipe(source=tmp_path / "source", target=tmp_path / "test", target_test=tmp_path / "test")
    assert refusal(recipe, call=load_domains) == (
        f"the classes of {tmp_path}/test and {tmp_path}/source differ: {tmp_path}/test has 'eel'; it lacks 'dog'"
    )


def test_a_target_test_without_some_class_is_renumbered_by_name(tmp_path, caplog):
    class_tree(tmp_path / "source", ("cat", "dog", "eel"), each=1)
    class_tree(tmp_path / "test", ("dog", "eel"), each=1)
    recipe = data_recipe(source=tmp_path / "source", target=tmp_path / "test", target_test=tmp_path / "test")
    with caplog.at_level(logging.WARNING, "edgeda"):
        domains = load_domains(recipe)
    assert domains.classes == ("cat", "dog", "eel")
    assert domains.target_test is not None
    assert domains.target_test.labels is not None
    # in the test folder dog was class 0; by name it is class 1
    assert domains.target_test.labels.tolist() == [1, 2]
    assert domains.target_test.classes == ("cat", "dog", "eel")
    assert f"{tmp_path}/test has no image of class 'cat'" in caplog.text
    assert domains.target.labels is None, "the same folder as target has no labels"


def test_labels_in_another_order_are_mapped_by_name(tmp_path):
    # the source's classes are 9 and 10 (by number); a model trained on names has them as "10", "9"
    picture(tmp_path / "a.png", 40)
    (tmp_path / "test.txt").write_text("a.png 9\na.png 10\n")
    assert open_labelled(str(tmp_path / "test.txt")).classes == ("9", "10")
    found = load_test(str(tmp_path / "test.txt"), ("10", "9"), SIXTEEN)
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0]
    assert found.classes == ("10", "9")


def test_data_with_a_class_the_model_has_not(tmp_path):
    class_tree(tmp_path, ("cat", "dog"), each=1)
    message = refusal(str(tmp_path), ("cat", "cow"), SIXTEEN, call=load_test)
    assert f"{tmp_path} and the model differ: {tmp_path} has 'dog'; it lacks 'cow'" in message


def test_many_strange_classes_are_not_all_listed(tmp_path):
    for number in range(12):
        picture(tmp_path / f"class {number:02}" / "0.png", 1)
    message = refusal(str(tmp_path), ("a", "b"), SIXTEEN, call=load_test)
    assert "'class 04' and 7 more" in message


# --- hold-out --------------------------------------------------------------------------------------------------------


def hold_out(folder: Path, counts: dict[str, int], fraction: float) -> tuple[ImageSet, ImageSet]:
    for name, count in counts.items():
        class_tree(folder, (name,), count)
    recipe = data_recipe(source=folder, target=folder).model_copy(update={"source_holdout": fraction})
    domains = load_domains(recipe)
    return domains.source, domains.source_test


def test_the_hold_out_is_a_fraction_of_each_class_and_disjoint(tmp_path):
    training, held = hold_out(tmp_path, {"cat": 10, "dog": 20, "eel": 1}, 0.2)
    assert training.labels is not None
    assert held.labels is not None
    assert np.bincount(held.labels, minlength=3).tolist() == [2, 4, 0]
    assert np.bincount(training.labels, minlength=3).tolist() == [8, 16, 1], "a class's only image is trained on"
    assert set(training.names).isdisjoint(held.names)
    assert len(set(training.names) | set(held.names)) == 31
    for part in (training, held):
        assert part.labels is not None
        assert part.squares[:, 0, 0, 0].tolist() == [list(GREYS.values())[label] for label in part.labels]


def test_the_hold_out_is_the_same_in_every_run(tmp_path):
    first = hold_out(tmp_path, {"cat": 10, "dog": 10}, 0.3)
    assert hold_out(tmp_path, {}, 0.3)[1].names == first[1].names


def test_a_large_hold_out_leaves_every_class_an_image(tmp_path):
    training, _ = hold_out(tmp_path, {"cat": 2, "dog": 3}, 0.89)
    assert training.labels is not None
    assert training.labels.tolist() == [0, 1]


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_without_a_hold_out_the_training_images_are_reported_on(fraction, tmp_path):
    # a tenth of four images is none
    training, held = hold_out(tmp_path, {"cat": 4, "dog": 4}, fraction)
    assert held is training
    assert len(training) == 8
