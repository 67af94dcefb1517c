"""`edgeda datasets prepare` as a library: into place and checked, safely, all or nothing."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeda.data.archives import is_archive, unpack
from edgeda.data.opening import open_labelled
from edgeda.data.prepare import prepare
from edgeda.errors import InputError
from tests.benchmark_trees import class_tree, clef_domain, grey_image, mnist, shrink, usps_gz

EACH = 6


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all data sets, not there yet; Office-31 is three classes of two images a domain."""
    monkeypatch.setenv("EDGEDA_DATA", str(tmp_path / "deep" / "sets"))
    shrink(monkeypatch, "office31", EACH, 3)
    return tmp_path / "deep" / "sets"


def office(base: Path, *domains: str, images: bool = True, each: int = 2) -> Path:
    for domain in domains:
        folder = base / domain / "images" if images else base / domain
        class_tree(folder, ("back_pack", "bike", "bike_helmet"), each)
    return base


def tar(path: Path, folder: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as opened:
        opened.add(folder, name)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(root: Path, name: str, source: Path, **options: bool) -> str:
    """The one line; nothing below the root has changed."""
    before = tree(root) if root.exists() else None
    with pytest.raises(InputError) as caught:
        prepare(name, source, root, **options)
    assert (tree(root) if root.exists() else None) == before
    assert root.exists() or not root.parent.exists(), "no empty folder is left either"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_archive_that_wraps_the_data_set(root, tmp_path):
    source = office(tmp_path / "made", "amazon", "dslr", "webcam")
    grey_image(source / "amazon" / "images" / "._thumb" / "x.png")
    archive = tar(tmp_path / "office31.tar.gz", source, "domain_adaptation_images/images")
    found = prepare("office31", archive, root)
    assert [(part.name, part.images, part.problems) for part in found] == [
        (f"office31:{domain}", EACH, ()) for domain in ("amazon", "dslr", "webcam")
    ]
    assert len(open_labelled("office31:dslr")) == EACH
    placed = tree(root)
    assert len(placed) == 3 * EACH
    assert placed["office31/webcam/bike/1.png"] == (source / "webcam/images/bike/1.png").read_bytes()


def test_a_folder_is_copied_and_stays(root, tmp_path):
    source = office(tmp_path / "made", "amazon", images=False)
    (source / "amazon" / "bike" / "notes.txt").write_text("not wanted")
    before = tree(source)
    prepare("office31", source, root)
    assert tree(source) == before
    assert set(tree(root)) == {f"office31/{name}" for name in before if name.endswith(".png")}


def test_one_archive_after_another(root, tmp_path, monkeypatch):
    small = shrink(monkeypatch, "visda2017", 4, 2)
    for domain in ("train", "validation"):
        source = class_tree(tmp_path / "made" / domain, small.classes, each=2)
        (part,) = prepare("visda2017", tar(tmp_path / f"{domain}.tar", source, domain), root)
        assert (part.name, part.problems) == (f"visda2017:{domain}", ())
    assert sorted(path.name for path in (root / "visda2017").iterdir()) == ["train", "validation"]


def test_a_zip_of_lists_and_images(root, tmp_path, monkeypatch):
    shrink(monkeypatch, "imageclef", 3, 3)
    for name in ("c", "p"):
        clef_domain(tmp_path / "made", name, [2, 0, 1], "somewhere/")
    with zipfile.ZipFile(tmp_path / "clef.zip", "w") as opened:
        for name, content in tree(tmp_path / "made").items():
            opened.writestr(f"image_CLEF/{name}", content)
            opened.writestr(f"__MACOSX/image_CLEF/{name}", b"")
    found = prepare("imageclef", tmp_path / "clef.zip", root)
    assert [part.name for part in found if not part.problems] == ["imageclef:c", "imageclef:p"]
    assert {name for name in tree(root) if name.endswith(".txt")} == {
        "imageclef/list/cList.txt", "imageclef/list/pList.txt",
    }  # fmt: skip
    domain = open_labelled("imageclef:p")
    assert domain.labels is not None
    assert domain.labels.tolist() == [2, 0, 1]


def test_files_of_digits(root, tmp_path, monkeypatch):
    shrink(monkeypatch, "usps", 2)
    shrink(monkeypatch, "mnist-full", 1)
    labels = [1, 2]
    file = usps_gz(tmp_path / "made" / "zip.train.gz", labels, np.zeros((2, 256)))
    assert "no image of class '0'" in refused(root, "usps", file)
    prepare("usps", file, root, partial=True)
    assert list(tree(root)) == ["usps/zip.train.gz"]
    mnist(tmp_path / "raw", "t10k", np.zeros((1, 28, 28)), [7], "")
    with pytest.raises(InputError, match="mnist-full:test has no image of class"):
        prepare("mnist-full", tmp_path / "raw", root)
    prepare("mnist-full", tmp_path / "raw", root, partial=True)
    assert len(open_labelled("mnist-full:test")) == 1


def test_nothing_is_overwritten_unless_asked(root, tmp_path):
    prepare("office31", office(tmp_path / "old", "amazon", "dslr"), root)
    new = office(tmp_path / "new", "webcam", "dslr")
    grey_image(new / "dslr" / "images" / "bike" / "0.png", 255)
    assert refused(root, "office31", new) == f"{root}/office31/dslr exists already; --overwrite replaces it"
    prepare("office31", new, root, overwrite=True)
    assert sorted(path.name for path in (root / "office31").iterdir()) == ["amazon", "dslr", "webcam"]
    wanted = (new / "dslr/images/bike/0.png").read_bytes()
    assert (root / "office31" / "dslr" / "bike" / "0.png").read_bytes() == wanted
    assert sorted(path.name for path in root.iterdir()) == ["office31"], "nothing is left behind"


def test_a_domain_under_another_name_is_replaced_and_not_doubled(root, tmp_path, monkeypatch):
    small = shrink(monkeypatch, "officehome", 2, 2)
    class_tree(root / "officehome" / "Real_World", small.classes)
    source = class_tree(tmp_path / "made" / "RealWorld", small.classes).parent
    assert "Real_World exists already" in refused(root, "officehome", source)
    prepare("officehome", source, root, overwrite=True)
    assert [path.name for path in (root / "officehome").iterdir()] == ["Real World"]


def test_wrong_counts_write_nothing_unless_a_part_is_enough(root, tmp_path):
    source = office(tmp_path / "made", "amazon", "webcam")
    (source / "webcam" / "images" / "bike" / "1.png").unlink()
    message = refused(root, "office31", source)
    assert message == "office31:webcam has 5 images, 6 are published; nothing was written, --partial takes it as it is"
    found = prepare("office31", source, root, partial=True)
    assert [part.images for part in found] == [6, 5]


def test_what_is_wrong_is_said_of_the_users_own_files(root, tmp_path, monkeypatch):
    shrink(monkeypatch, "imageclef", 2, 2)
    clef_domain(tmp_path / "made", "c", [0, 1])
    (tmp_path / "made" / "c" / "1.png").unlink()
    message = refused(root, "imageclef", tmp_path / "made")
    assert message.startswith(f"imageclef:c: of 2 images in {tmp_path}/made/list/cList.txt, not there: 1; and 2 more")


def test_what_is_not_the_data_set(root, tmp_path):
    class_tree(tmp_path / "cats", ("tabby", "siamese"))
    assert "no domain of Office-31 is in" in refused(root, "office31", tmp_path / "cats")
    (tmp_path / "notes.txt").write_text("hello")
    assert "is neither a folder nor a .zip, .tar or .tar.gz" in refused(root, "office31", tmp_path / "notes.txt")
    assert "no such archive or folder" in refused(root, "office31", tmp_path / "nowhere")
    assert "did you mean 'office31'" in refused(root, "office-31", tmp_path / "cats")


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_failure_between_the_renames_takes_all_back(first, fails_at, root, tmp_path, monkeypatch):
    if first:
        fails_at //= 2  # nothing has to make room
    else:
        prepare("office31", office(tmp_path / "old", "amazon", "dslr"), root)
    new = office(tmp_path / "new", "amazon", "dslr")
    rename, calls = os.replace, []

    def replace(source, target):
        calls.append(source)
        if len(calls) == fails_at + 1:
            raise OSError(28, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert "the disk is full while preparing Office-31" in refused(root, "office31", new, overwrite=True)
    assert len(calls) > fails_at


# --- archives that somebody else made --------------------------------------------------------------------------------


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as opened:
        for member in members:
            content = b"x" if member.isreg() else b""
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


OUT = ["../out.png", "a/../../out.png", "/tmp/edgeda-out.png", "..\\out.png"]


@pytest.mark.parametrize("name", OUT)
def test_names_that_lead_out(name, root, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as opened:
        opened.writestr(name, b"x")
    for archive in (tar_of(tmp_path / "bad.tar", member("fine.png"), member(name)), tmp_path / "bad.zip"):
        assert "which leads out of the folder" in refused(root, "office31", archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "bad.zip"]
    assert not Path("/tmp/edgeda-out.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(kind, root, tmp_path):
    archive = tar_of(tmp_path / "bad.tar", member("amazon", kind, "/etc"), member("amazon/bike/0.png"))
    assert "'amazon', a link or device" in refused(root, "office31", archive)


def test_links_in_a_zip(root, tmp_path):
    info = zipfile.ZipInfo("amazon")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as opened:
        opened.writestr(info, "/etc")
    assert "'amazon', a link or device" in refused(root, "office31", tmp_path / "bad.zip")


def test_a_name_that_comes_twice(root, tmp_path):
    archive = tar_of(tmp_path / "bad.tar", member("a/0.png"), member("a/./0.png"))
    assert "holds a/./0.png twice" in refused(root, "office31", archive)


def test_damaged_archives(root, tmp_path):
    source = office(tmp_path / "made", "amazon", each=2)
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    (source / "amazon" / "images" / "bike" / "0.png").write_bytes(noise)
    for name in ("whole.tar", "whole.tar.gz"):
        whole = tar(tmp_path / name, source, "made").read_bytes()
        (tmp_path / f"half-{name}").write_bytes(whole[: len(whole) // 2])
        assert "half-" in refused(root, "office31", tmp_path / f"half-{name}")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as opened:
        opened.writestr("amazon/bike/0.png", noise)
    content = bytearray((tmp_path / "whole.zip").read_bytes())
    content[5_000] ^= 255
    (tmp_path / "flipped.zip").write_bytes(content)
    assert "flipped.zip cannot be unpacked: Bad CRC-32" in refused(root, "office31", tmp_path / "flipped.zip")


def test_an_archive_is_known_by_its_content(tmp_path):
    tar(tmp_path / "a.bin", office(tmp_path / "made", "amazon"), "x")
    assert is_archive(tmp_path / "a.bin")
    digits = usps_gz(tmp_path / "zip.train.gz", [1], np.zeros((1, 256)))
    assert not is_archive(digits), "gzip alone is no archive"
    unpack(tmp_path / "a.bin", tmp_path / "out")
    assert len(tree(tmp_path / "out")) == EACH
