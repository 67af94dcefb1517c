"""Domains: the folders and lists a user names, and what is said when they are wrong."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeda.data import load_domains, load_target
from edgeda.data.domains import FileDomain
from edgeda.data.images import decode
from edgeda.data.opening import open_labelled, open_unlabelled
from edgeda.errors import InputError
from edgeda.runtime.preprocessing import Preprocessing
from tests.image_trees import (
    GREYS,
    SIXTEEN,
    VIDEO,
    class_tree,
    data_recipe,
    names_of,
    picture,
    refusal,
    spoil,
)

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


def test_a_class_folder_that_cannot_be_opened_is_no_missing_class(tmp_path, monkeypatch):
    class_tree(tmp_path, each=1)
    scan = os.scandir

    def locked(path="."):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match=r"dog cannot be opened \(Permission denied\), and its class would be missing"):
        open_labelled(str(tmp_path))


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
        ("img 1.jpg,traffic light", "img 1.jpg", "traffic light"),
        ("img,1.jpg , traffic light ", "img,1.jpg", "traffic light"),
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
    (tmp_path / "list.txt").write_text("a.png 1\nmy cat.png\nb, c.png\tmug\na.png,b.png\nd.png,traffic light\n# end\n")
    domain = open_unlabelled(str(tmp_path / "list.txt"), VIDEO)
    assert names_of(domain, tmp_path) == ["a.png", "my cat.png", "b, c.png", "a.png,b.png", "d.png"]


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
