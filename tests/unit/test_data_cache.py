"""The cache of decoded images: the same pixels with and without it, whatever happens to disk and files."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeda.data import cache as cache_module
from edgeda.data import images as images_module
from edgeda.data.cache import SquareCache
from edgeda.data.domains import ArrayDomain, FileDomain
from edgeda.data.image_files import any_folder, class_folders, image_list
from edgeda.data.images import ImageSet, decode
from edgeda.data.squares import FileSquares, FileWriter, UsedSquares
from edgeda.data.texts import Paths, Texts
from edgeda.errors import InputError
from edgeda.recipe import Recipe
from edgeda.recipe_file import changed
from edgeda.runtime.preprocessing import Preprocessing
from tests.conftest import TINY

SIXTEEN = Preprocessing(16, "crop", 0.8)
GIGABYTE = 10**9


def photographs(folder: Path, count: int = 6, spoilt: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(folder.name.encode()))
    for number in range(count):
        pixels = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    if spoilt:
        (folder / "3bad.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photographs(tmp_path / "images")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is decoded from now on."""
    seen: list[str] = []
    real = FileDomain.read
    monkeypatch.setattr(FileDomain, "read", lambda self, index: (seen.append(self.item(index)), real(self, index))[1])
    return seen


def read(folder: Path, place: Path | None, limit: int = GIGABYTE, ahead: int | None = None) -> ImageSet:
    cache = SquareCache(limit, place) if place else None
    return decode(any_folder(folder), SIXTEEN, "target", cache=cache, ahead=ahead)


def entries(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.suffix == ".squares")


def equal(first: ImageSet, second: ImageSet) -> bool:
    return (
        np.array_equal(first.squares[:], second.squares[:])
        and list(first.names) == list(second.names)
        and list(first.skipped) == list(second.skipped)
        and first.digest() == second.digest()
    )


# --- the same images -------------------------------------------------------------------------------------------------


def test_cached_images_are_those_decoded_and_are_decoded_once(folder, place, decoded):
    plain = read(folder, None)
    assert len(decoded) == 7
    assert equal(read(folder, place), plain)
    assert len(decoded) == 14
    again = read(folder, place)
    assert equal(again, plain)
    assert len(decoded) == 14
    assert isinstance(again.squares, FileSquares)
    assert len(again) == 6
    assert [line.split(": ")[0] for line in again.skipped] == [f"cannot read image {folder}/3bad.jpg"]
    assert len(entries(place)) == len(list(place.iterdir())) == 1


def test_where_files_cannot_be_made_large_beforehand(folder, place, monkeypatch):
    """As on macOS."""
    plain = read(folder, None)
    monkeypatch.delattr(os, "posix_fallocate")
    assert equal(read(folder, place), plain)
    assert isinstance(read(folder, place).squares, FileSquares)


@pytest.mark.parametrize("cause", [PermissionError(errno.EACCES, "denied"), MemoryError("no memory")])
def test_a_file_that_could_not_be_read_this_time_is_not_left_out_for_ever(folder, place, monkeypatch, caplog, cause):
    """Nothing of the file itself changes when it may be read again."""
    plain, reading = read(folder, None), Image.open

    def refused(path: Path, **options: object) -> Image.Image:
        if path.name == "4.jpg":
            raise cause
        return reading(path, **options)

    monkeypatch.setattr(Image, "open", refused)
    assert len(read(folder, place)) == 5
    assert "some files could not be read this time: not kept for other runs" in caplog.text
    assert entries(place) == []
    monkeypatch.setattr(Image, "open", reading)
    assert equal(read(folder, place), plain)
    assert len(entries(place)) == 1


def test_chosen_images_of_a_cached_domain_are_not_copied_and_equal(folder, place):
    plain, cached = read(folder, None), read(folder, place)
    chosen = np.array([4, 0, 3])
    first, second = plain.take(chosen), cached.take(chosen)
    assert equal(first, second)
    assert equal(first.take(np.array([2, 0])), second.take(np.array([2, 0])))
    for index in (1, slice(0, 2), slice(1, None, 2), np.array([2, 2]), (slice(None), 0, 0, 0)):
        assert np.array_equal(first.squares[index], second.squares[index])
    assert not isinstance(second.squares, np.ndarray)


def test_images_in_a_file_without_a_name_are_the_same(folder, monkeypatch):
    plain = read(folder, None)
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 1)
    large = read(folder, None)
    assert isinstance(large.squares, FileSquares)
    assert equal(large, plain)


def test_a_domain_in_memory_needs_no_cache(place):
    pixels = np.zeros((3, 8, 8), np.uint8)
    domain = ArrayDomain("dark", pixels, np.zeros(3, np.int64), ("a",))
    assert isinstance(decode(domain, SIXTEEN, "source", cache=SquareCache(GIGABYTE, place)).squares, np.ndarray)
    assert not place.exists()


# --- rebuilt when something changes ----------------------------------------------------------------------------------


def touch(folder: Path) -> None:
    os.utime(folder / "2.jpg", ns=(1, 1))


def replace(folder: Path) -> None:
    Image.new("RGB", (50, 40), (250, 0, 0)).save(folder / "2.jpg")


def remove(folder: Path) -> None:
    (folder / "2.jpg").unlink()


def add(folder: Path) -> None:
    Image.new("RGB", (50, 40), (250, 0, 0)).save(folder / "7.jpg")


@pytest.mark.parametrize("change", [touch, replace, remove, add])
def test_other_files_are_decoded_anew(change, folder, place, decoded):
    read(folder, place)
    change(folder)
    decoded.clear()
    found = read(folder, place)
    assert len(decoded) == len(list(folder.iterdir()))
    assert equal(found, read(folder, None))


def test_another_geometry_is_another_entry_and_another_normalization_is_not(folder, place, decoded):
    domain, cache = any_folder(folder), SquareCache(GIGABYTE, place)
    for preprocessing, count in (
        (SIXTEEN, 7),
        (Preprocessing(16, "crop", 0.8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 7),
        (Preprocessing(16, "squash"), 14),
        (Preprocessing(16, "crop", 0.9), 21),
    ):
        found = decode(domain, preprocessing, "target", cache=cache)
        assert len(decoded) == count
        assert found.squares[0].shape == (preprocessing.stored_size,) * 2 + (3,)


def test_a_relative_list_is_found_from_anywhere(folder, place, decoded, monkeypatch):
    (folder.parent / "list.txt").write_text("images/0.jpg\nimages/1.jpg\n")
    cache = SquareCache(GIGABYTE, place)
    monkeypatch.chdir(folder.parent)
    decode(image_list(Path("list.txt"), False), SIXTEEN, "target", cache=cache)
    monkeypatch.chdir(folder)
    decode(image_list(Path("..", "list.txt").resolve(), False), SIXTEEN, "target", cache=cache)
    assert len(decoded) == 2


# --- files that change during the run --------------------------------------------------------------------------------


def test_files_that_change_while_they_are_decoded_are_not_kept(folder, place, monkeypatch, caplog):
    real = FileDomain.read

    def growing(self, index):
        found = real(self, index)
        if index == 5:
            replace(folder)
        return found

    monkeypatch.setattr(FileDomain, "read", growing)
    with caplog.at_level(logging.WARNING, "edgeda"):
        found = read(folder, place)
    assert "files changed while they were decoded: not kept for other runs" in caplog.text
    assert len(found) == 6
    assert list(place.iterdir()) == []


def test_files_that_vanish_after_they_were_decoded_are_not_missed(folder, place):
    plain, cached = read(folder, None), read(folder, place)
    for path in folder.iterdir():
        path.unlink()
    assert np.array_equal(plain.squares[:], cached.squares[:])


# --- a damaged cache -------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xFF]))


@pytest.mark.parametrize("damage", ["footer", "trailer", "short", "empty"])
def test_a_damaged_entry_is_made_again(damage, folder, place, decoded, caplog):
    plain = read(folder, place).squares[:]
    (entry,) = entries(place)
    if damage in ("footer", "trailer"):
        flip(entry, -70 if damage == "footer" else -40)
    else:
        os.truncate(entry, 0 if damage == "empty" else 500)
    decoded.clear()
    with caplog.at_level(logging.WARNING, "edgeda"):
        assert np.array_equal(read(folder, place).squares[:], plain)
    assert "cached images are damaged" in caplog.text
    assert len(decoded) == 7
    caplog.clear()
    assert np.array_equal(read(folder, place).squares[:], plain)
    assert len(decoded) == 7
    assert "images are damaged" not in caplog.text


def test_a_flipped_bit_in_a_square_is_found_when_it_is_read_and_mended(folder, place, decoded, caplog):
    plain = read(folder, None)
    read(folder, place)
    (entry,) = entries(place)
    flip(entry, 2 * 20 * 20 * 3 + 77)  # in the third square
    decoded.clear()
    with caplog.at_level(logging.WARNING, "edgeda"):
        found = read(folder, place)
        assert np.array_equal(found.squares[:2], plain.squares[:2])
        assert entry.exists(), "the damage is where nobody has looked"
        assert np.array_equal(found.squares[:], plain.squares[:])
        assert np.array_equal(found.squares[2:3], plain.squares[2:3])
    assert decoded == [f"{folder}/2.jpg"], "only the damaged image, once"
    assert len([line for line in caplog.messages if "damaged" in line]) == 1
    assert not entry.exists(), "the next run makes it anew"
    assert found.digest() == plain.digest()


def test_a_damaged_square_whose_file_is_gone_ends_the_run_in_one_line(folder, place):
    read(folder, place)
    (entry,) = entries(place)
    flip(entry, 5)
    found = read(folder, place)
    (folder / "0.jpg").unlink()
    with pytest.raises(InputError, match=r"no such image: .*0\.jpg"):
        found.squares[:]


# --- a disk that does not take it ------------------------------------------------------------------------------------


def refuse(number: int):
    def failing(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    return failing


def test_a_full_disk_is_said_and_nothing_is_left(folder, place, monkeypatch, caplog):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    found = read(folder, place)
    assert equal(found, read(folder, None))
    (line,) = [line for line in caplog.messages if "not kept" in line]
    assert line == "images: decoded images are not kept for other runs: No space left on device"
    assert list(place.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way(folder, place, monkeypatch, caplog):
    monkeypatch.setattr(FileWriter, "add", refuse(errno.EDQUOT))
    found = read(folder, place)
    assert equal(found, read(folder, None))
    assert "not kept for other runs: Disk quota exceeded" in caplog.text
    assert list(place.iterdir()) == []


def test_little_free_space_is_left_alone(folder, place, monkeypatch, caplog):
    monkeypatch.setattr(cache_module, "RESERVE", 2**60)
    assert equal(read(folder, place), read(folder, None))
    assert f"the disk of {place} has too little free space" in caplog.text
    assert list(place.iterdir()) == []


def test_a_cache_that_cannot_be_written(folder, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert equal(read(folder, tmp_path / "file" / "cache"), read(folder, None))
    assert "not kept for other runs: Not a directory" in caplog.text


def test_an_entry_in_a_folder_that_may_only_be_read_is_used(folder, place, decoded, monkeypatch):
    read(folder, place)
    decoded.clear()
    monkeypatch.setattr(os, "utime", refuse(errno.EROFS))
    assert len(read(folder, place)) == 6
    assert not decoded


def test_no_room_anywhere_for_a_large_domain_is_an_error_of_one_line(folder, monkeypatch):
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    with pytest.raises(
        InputError, match=r"No space left on device: no room for 7 decoded images of images in .*TMPDIR"
    ):
        read(folder, None)


def test_a_run_that_is_stopped_while_decoding_leaves_nothing(folder, place, monkeypatch):
    def stop(self, square):
        raise KeyboardInterrupt

    monkeypatch.setattr(FileWriter, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        read(folder, place)
    assert list(place.iterdir()) == []


def test_what_a_killed_run_has_left_is_taken_over(folder, place):
    read(folder, place)
    (entry,) = entries(place)
    entry.rename(entry.with_suffix(".part"))
    flip(entry.with_suffix(".part"), 100)
    assert equal(read(folder, place), read(folder, None))
    assert list(place.iterdir()) == [entry]


# --- bounded, shared -------------------------------------------------------------------------------------------------

ONE = 7 * (20 * 20 * 3 + 12) + 100
"""Bytes of a domain of seven files, a little more than it takes."""


def test_the_entry_used_longest_ago_makes_room_but_never_one_in_use(tmp_path, place, caplog):
    names = ("a", "b", "c", "d")
    folders = {name: photographs(tmp_path / name, 7, spoilt=False) for name in names}
    made = {}
    for age, name in enumerate("ab"):
        read(folders[name], place, 3 * ONE)
        (made[name],) = set(entries(place)) - set(made.values())
        os.utime(made[name], ns=(age, age))
    using = read(folders["a"], place, 3 * ONE)  # now the newest, and open
    os.utime(made["a"], ns=(0, 0))
    read(folders["c"], place, 3 * ONE)
    assert len(entries(place)) == 3, "they fit"
    read(folders["d"], place, 3 * ONE)
    left = set(entries(place))
    assert made["a"] in left, "the oldest, but in use"
    assert made["b"] not in left
    assert len(left) == 3
    assert sum(path.stat().st_size for path in left) <= 3 * ONE
    read(folders["b"], place, ONE)
    assert "other runs are using" in caplog.text
    assert entries(place) == [made["a"]]
    assert len(using.squares[:]) == 7


def test_images_that_can_never_fit_are_not_kept_and_remove_nothing(folder, tmp_path, place, caplog):
    read(photographs(tmp_path / "small", 2, spoilt=False), place, ONE)
    before = entries(place)
    assert len(read(folder, place, 5000)) == 6
    assert "are more than data.cache_gb" in caplog.text
    assert entries(place) == before


def test_no_cache_is_asked_for(folder, place):
    assert len(read(folder, place, 0)) == 6
    assert not place.exists()


def test_two_runs_at_once_decode_once(folder, place, decoded, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    add = FileWriter.add

    def slow(self, square):
        started.set()
        assert go_on.wait(30)
        add(self, square)

    monkeypatch.setattr(FileWriter, "add", slow)
    found: list[ImageSet] = []
    threads = [threading.Thread(target=lambda: found.append(read(folder, place))) for _ in range(2)]
    threads[0].start()
    assert started.wait(30)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(decoded) == 7
    assert equal(*found)
    assert len(list(place.iterdir())) == 1


def test_an_entry_in_use_is_locked_and_let_go_of(folder, place):
    found = read(folder, place)
    (entry,) = entries(place)
    with entry.open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        del found
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- decoded as they are used ----------------------------------------------------------------------------------------


def test_a_large_domain_is_decoded_as_it_is_used(folder, place, decoded, caplog):
    with caplog.at_level(logging.INFO, "edgeda"):
        found = read(folder, place, ahead=6)
    assert not decoded
    assert "the 7 images of images are decoded as they are used (more than data.decode_ahead, 6)" in caplog.text
    assert not found.decoded
    assert len(found) == 7
    plain = read(folder, None)
    decoded.clear()
    assert np.array_equal(found.squares[np.array([5, 0, 5])], plain.squares[np.array([4, 0, 4])])
    assert len(decoded) == 3
    assert not found.skipped
    # the fifth cannot be read: the next one takes its place
    assert np.array_equal(found.take(np.array([4, 3])).squares[:], plain.squares[np.array([4, 3])])
    assert [f"{folder}/3bad.jpg" in line for line in found.skipped] == [True]
    found.squares[np.array([4, 4])]
    assert len(found.skipped) == 1, "noted once"
    assert not place.exists()


def test_an_image_that_cannot_be_read_is_replaced_by_one_of_its_class(tmp_path):
    for name in ("cat", "dog"):
        photographs(tmp_path / name, 3, spoilt=False)
    (tmp_path / "cat" / "2.jpg").unlink()
    domain = class_folders(tmp_path)
    (tmp_path / "cat" / "1.jpg").write_bytes(b"")
    found = decode(domain, SIXTEEN, "source", ahead=0)
    whole = found.squares[:]
    assert np.array_equal(whole[1], whole[0]), "the last cat, so the first one again"
    assert not np.array_equal(whole[1], whole[2])


def test_a_domain_of_which_nothing_can_be_read_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeda.data.squares.MOST_BAD", 5)
    domain = FileDomain("gone", [tmp_path / f"{number}.jpg" for number in range(9)])
    found = decode(domain, SIXTEEN, "target", ahead=1)
    assert isinstance(found.squares, UsedSquares)
    with pytest.raises(InputError, match="5 images of gone in a row cannot be read; the last: no such image"):
        found.squares[:1]


# --- many paths ------------------------------------------------------------------------------------------------------


def test_texts_are_the_strings_they_were_made_of():
    strings = ["a", "", "ünï", "b\udcff.png", "c" * 300]
    texts = Texts.of(strings)
    assert list(texts) == strings
    assert texts == strings
    assert texts != strings[:-1]
    assert texts[-1] == strings[-1]
    assert texts[1:4:2] == ["", "b\udcff.png"]
    assert texts.take(np.array([4, 0, 0])) == [strings[4], "a", "a"]
    assert Texts.of([]) == []
    with pytest.raises(IndexError):
        texts[5]


@pytest.mark.parametrize("text", ["/a/b.png", "a/b.png", "./a.png", "a//b.png", "a/./b", "../a", "a/", ".a", "/a/.b/c"])
def test_paths_are_spelled_as_path_spells_them(text):
    assert Paths.of([text]).texts[0] == str(Path(text))
    assert Paths.of([Path(text)]) == [Path(text)]


def test_many_paths_take_the_memory_of_their_letters(tmp_path):
    import tracemalloc

    count = 20_000
    path = tmp_path / "list.txt"
    path.write_text("".join(f"camera/{number:08}.jpg\n" for number in range(count)))
    letters = count * len(f"{tmp_path}/camera/00000000.jpg")
    tracemalloc.start()
    try:
        domain = image_list(path, labelled=False)
        found = decode(domain, SIXTEEN, "target", ahead=0)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == count
    assert found.names[count - 1] == f"{tmp_path}/camera/{count - 1:08}.jpg"
    assert held < 1.3 * letters + 40 * count, "the letters once, two numbers each"
    assert peak < 5 * letters + 60 * count


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_with_and_without_cache_and_prefetching(folders, command, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDA_CACHE", str(tmp_path / "user"))
    weights = []
    arguments = [*folders.arguments, *TINY, "--method", "source-only", "--epochs", 1]
    for number, more in enumerate(
        (["--cache-gb", 0, "--set", "train.prefetch=0"], ["--cache-gb", 1], ["--cache-gb", 1])
    ):
        ran = command("adapt", *arguments, *more, "--out", tmp_path / str(number), "--json")
        assert ran.code == 0, ran.err
        assert 0 <= ran.json["wait_share"] <= 1
        weights.append((tmp_path / str(number) / "student.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]
    assert len(entries(tmp_path / "user" / "edgeda" / "squares")) == 3


def test_resuming_with_another_cache_is_the_same_run_and_with_other_data_is_not(folders, tmp_path):
    values = {"data": {"source": str(folders.source), "target": str(folders.target)}}
    saved = Recipe.model_validate(values)
    asked = changed(saved, {"data.cache_gb": 0, "train.prefetch": 0})
    assert saved.outcome() == asked.outcome()
    assert saved.outcome() != changed(saved, {"data.decode_ahead": 5}).outcome()
    worked = saved.at_workplace(changed(asked, {"train.epochs": 3}))
    assert (worked.data.cache_gb, worked.train.prefetch, worked.train.epochs) == (0, 0, saved.train.epochs)
