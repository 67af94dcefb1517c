"""Batches: which images meet in which step, and the geometry and light they are seen in."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeda.data.augment import _light, _light_draws, _sample, _windows, affine_maps, prepare
from edgeda.data.batches import Batch, PairedBatches
from edgeda.data.images import ImageSet
from edgeda.data.prefetch import Prefetched
from edgeda.errors import InputError
from edgeda.recipe import AugmentRecipe
from edgeda.runtime.preprocessing import Preprocessing, network_input

PLAIN = Preprocessing(4, "squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Network input = pixel / 255, of 4 x 4 images."""
UNCHANGED = AugmentRecipe()
WILD = AugmentRecipe(rotate=30, scale=(0.7, 1.4), translate=0.2, shear=10, flip=True, brightness=0.2, contrast=0.2)


def greys(count: int, labelled: bool, side: int = 4) -> ImageSet:
    """`count` images; image i is of the grey 10 + i, and its label is i."""
    squares = np.empty((count, side, side, 3), np.uint8)
    squares[:] = np.arange(10, 10 + count, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(count, dtype=np.int64) if labelled else None
    return ImageSet("greys", squares, labels, None, tuple(map(str, range(count))), ())


def paired(sources: int, targets: int, batch_size: int, seed: int = 0, augment: AugmentRecipe = UNCHANGED):
    return PairedBatches(greys(sources, True), greys(targets, False), PLAIN, augment, batch_size, seed)


def which(images: torch.Tensor) -> list[int]:
    """The numbers of the `greys` in a batch."""
    return [round(float(image.mean()) * 255) - 10 for image in images]


def walk(batches: PairedBatches, steps: int, stage: int = 0) -> tuple[list[int], list[int]]:
    """The numbers of source and target images over the first steps of a stage."""
    source: list[int] = []
    target: list[int] = []
    for step in range(steps):
        batch = batches.get(stage, step)
        source += which(batch.source_images)
        target += which(batch.target_images)
    return source, target


def test_a_batch_has_no_place_for_target_labels():
    fields = [field.name for field in dataclasses.fields(Batch)]
    assert fields == ["source_images", "source_labels", "target_images"]


def test_a_source_without_labels_is_refused():
    with pytest.raises(ValueError, match="needs labels"):
        PairedBatches(greys(3, False), greys(3, False), PLAIN, UNCHANGED, 2, 0)


def test_a_batch_is_a_function_of_stage_and_step():
    places = [(stage, step) for stage in (0, 1) for step in range(20)]
    first = paired(7, 5, 4, augment=WILD)
    forwards = {place: first.get(*place) for place in places}
    for batches, order in ((first, places[::-1]), (paired(7, 5, 4, augment=WILD), places[3::7])):
        for place in order:
            again = batches.get(*place)
            for field in dataclasses.fields(Batch):
                name = field.name
                assert torch.equal(getattr(again, name), getattr(forwards[place], name)), (place, name)


def test_the_state_of_torch_is_neither_used_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = paired(7, 5, 4, augment=WILD).get(0, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(paired(7, 5, 4, augment=WILD).get(0, 3).target_images, first.target_images)


@pytest.mark.parametrize(("sources", "targets", "batch_size"), [(7, 3, 4), (3, 8, 4), (8, 8, 4), (5, 2, 13)])
def test_every_image_is_seen_equally_often(sources, targets, batch_size):
    batches = paired(sources, targets, batch_size)
    seen: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for step in range(17):
        batch = batches.get(0, step)
        assert len(batch.source_images) == len(batch.target_images) == len(batch.source_labels) == batch_size
        shown = (step + 1) * batch_size
        for counts, images, count in zip(
            seen, (batch.source_images, batch.target_images), (sources, targets), strict=True
        ):
            counts.update(which(images))
            assert set(counts) <= set(range(count))
            assert {counts[index] for index in range(count)} <= {shown // count, -(-shown // count)}


def test_labels_stay_with_their_images():
    batches = paired(9, 4, 5)
    for step in range(6):
        batch = batches.get(0, step)
        assert batch.source_labels.tolist() == which(batch.source_images)
        assert batch.source_labels.dtype == torch.int64


@pytest.mark.parametrize(("sources", "batch_size", "steps"), [(8, 4, 2), (9, 4, 2), (11, 4, 3), (3, 32, 1)])
def test_an_epoch_is_one_pass_of_the_source_in_whole_batches(sources, batch_size, steps):
    assert paired(sources, 50, batch_size).steps_per_epoch == steps


def test_orders_differ_between_passes_stages_seeds_and_domains():
    # 20 images a pass: two orders are the same once in 20! times
    source, target = walk(paired(20, 20, 10), 4)
    assert source[:20] != sorted(source[:20])
    others = [
        source[20:],
        target[:20],
        target[20:],
        walk(paired(20, 20, 10), 2, stage=1)[0],
        walk(paired(20, 20, 10, seed=1), 2)[0],
        walk(paired(20, 20, 10, seed=1), 2)[1],
        walk(paired(20, 20, 10, seed=2**40), 2)[0],
    ]
    orders = {tuple(order) for order in (source[:20], *others)}
    assert len(orders) == 8
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_an_image_is_augmented_anew_every_time():
    # a quarter turn of a gradient is no grey any more: compare the same image in many steps
    gradient = np.zeros((1, 4, 4, 3), np.uint8)
    gradient[0, :, :, :] = np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4, 1)
    lone = ImageSet("lone", gradient, np.zeros(1, np.int64), None, ("0",), ())
    batches = PairedBatches(lone, lone, PLAIN, AugmentRecipe(rotate=180), 2, 0)
    batch = batches.get(0, 0)
    images = [*batch.source_images, *batch.target_images, *batches.get(0, 1).source_images]
    assert len({image.numpy().tobytes() for image in images}) == 6


# --- geometry and light ----------------------------------------------------------------------------------------------


def squares(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def drawn(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Every random draw is `value`: 1 gives the upper end of a range, 0 the lower, 0.5 the middle."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.full(shape, value))


def plain(side: int, size: int | None = None) -> Preprocessing:
    """Pixel / 255; with `size`, the centre of squares of `side`."""
    if size is None:
        return Preprocessing(side, "squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    made = Preprocessing(size, "crop", size / side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert made.stored_size == side
    return made


def augmented(images: NDArray[np.uint8], preprocessing: Preprocessing, augment: AugmentRecipe) -> NDArray[np.float32]:
    """Augmented images as `(N, H, W, 3)`, in units of the pixels."""
    out = prepare(torch.from_numpy(images), preprocessing, augment)
    return out.permute(0, 2, 3, 1).numpy() * 255


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(16, "squash"),
        Preprocessing(14, "crop", 0.875),
        Preprocessing(13, "crop", 0.8, (0.5, 0.4, 0.3), (0.2, 0.1, 0.7)),
    ],
)
def test_without_augmentation_the_network_sees_what_the_runtime_shows_it(preprocessing):
    images = squares(8, preprocessing.stored_size)
    found = prepare(torch.from_numpy(images), preprocessing)
    expected = network_input(images, preprocessing)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape == (8, 3, preprocessing.size, preprocessing.size)
    assert np.abs(found.numpy() - expected).max() <= 1e-6
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_every_byte_is_normalized_as_in_float64():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    preprocessing = Preprocessing(16, "squash")
    found = prepare(torch.from_numpy(images), preprocessing).numpy()
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    expected = ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    assert np.abs(found - expected).max() <= 1e-6


def test_no_augmentation_asked_for_is_the_identity():
    preprocessing = Preprocessing(16, "squash")
    images = squares(4, 16)
    found = prepare(torch.from_numpy(images), preprocessing, AugmentRecipe()).numpy()
    assert np.abs(found - network_input(images, preprocessing)).max() <= 1e-5


def test_a_central_window_of_a_larger_square_is_the_runtimes_crop():
    preprocessing = Preprocessing(14, "crop", 0.875)
    images = squares(4, 16)
    found = prepare(torch.from_numpy(images), preprocessing, AugmentRecipe()).numpy()
    assert np.abs(found - network_input(images, preprocessing)).max() <= 1e-5


@pytest.mark.parametrize(("draw", "turns"), [(1.0, 1), (0.0, -1), (0.5, 0)])
def test_a_quarter_turn(draw, turns, monkeypatch):
    drawn(monkeypatch, draw)
    images = squares(2, 2)
    found = augmented(images, plain(2), AugmentRecipe(rotate=90))
    assert np.abs(found - np.rot90(images, turns, axes=(1, 2))).max() < 1e-2


def test_a_turn_keeps_lengths():
    maps = affine_maps(100, plain(8), AugmentRecipe(rotate=40), torch.Generator().manual_seed(0))
    linear = maps[:, :, :2]
    assert torch.allclose(linear @ linear.transpose(1, 2), torch.eye(2).expand(100, 2, 2), atol=1e-6)
    angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert angles.abs().max() <= 40
    assert angles.min() < -30
    assert angles.max() > 30


def test_flip_mirrors_about_half_of_the_images_sideways():
    images = squares(1, 4).repeat(200, axis=0)
    found = augmented(images, plain(4), AugmentRecipe(flip=True))
    mirrored = np.abs(found - images[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-2
    same = np.abs(found - images).max(axis=(1, 2, 3)) < 1e-2
    assert np.all(mirrored ^ same)
    assert 60 < mirrored.sum() < 140  # 200 throws of a coin: 100 +- 7


def test_without_flip_nothing_is_mirrored():
    maps = affine_maps(50, plain(4), AugmentRecipe(), None)
    assert torch.equal(maps, torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(50, 2, 3))


def test_translate_moves_by_the_fraction_of_the_side(monkeypatch):
    images = squares(1, 8)
    augment = AugmentRecipe(translate=0.25)
    drawn(monkeypatch, 0.0)  # a quarter of 8 pixels: right and down by 2
    found = augmented(images, plain(8), augment)
    assert np.abs(found[:, 2:, 2:] - images[:, :-2, :-2]).max() < 1e-2
    assert np.abs(found[:, 0, 2:] - images[:, 0, :-2]).max() < 1e-2, "the border is repeated"
    drawn(monkeypatch, 1.0)
    found = augmented(images, plain(8), augment)
    assert np.abs(found[:, :-2, :-2] - images[:, 2:, 2:]).max() < 1e-2


def test_a_zoom_of_two_enlarges_the_middle():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    images[:, 2:6, 2:6] = 200
    found = augmented(images, plain(8), AugmentRecipe(scale=(2.0, 2.0)))
    assert np.abs(found[0] - 200).max() < 1e-2, "the window is cut out first: what is beside it is not mixed in"


def test_a_zoom_of_a_half_shows_the_square_small_inside_its_border():
    images = squares(1, 8)
    found = augmented(images, plain(8), AugmentRecipe(scale=(0.5, 0.5)))
    # output pixel j lies at input 2 j - 3.5: half way between two pixels
    expected = images.reshape(1, 4, 2, 4, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(found[:, 2:6, 2:6] - expected).max() < 1.01, "rounded to a byte"


def test_shear_leans_the_rows_and_keeps_their_height(monkeypatch):
    drawn(monkeypatch, 1.0)
    maps = affine_maps(1, plain(8), AugmentRecipe(shear=45), None)
    # x_in = x_out + tan(45 degrees) y_out, y_in = y_out
    assert torch.allclose(maps[0], torch.tensor([[1.0, 1, 0], [0, 1, 0]]), atol=1e-6)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 1.5)])
def test_a_random_crop_stays_inside_the_stored_square(scale):
    preprocessing = plain(16, 12)
    augment = AugmentRecipe(crop="random", scale=scale)
    maps = affine_maps(500, preprocessing, augment, torch.Generator().manual_seed(0))
    window, offset = maps[:, 0, 0], maps[:, :, 2].abs()
    assert torch.all(window <= 0.75 + 1e-6)
    assert (offset + window[:, None]).max() <= 1 + 1e-6
    assert torch.all(offset.amax(dim=0) > 0.24), "it reaches the edges, a quarter from the centre"
    for axis in (0, 1):
        assert maps[:, axis, 2].min() < -0.2
        assert maps[:, axis, 2].max() > 0.2
    assert abs(float(torch.corrcoef(maps[:, :, 2].T)[0, 1])) < 0.2, "across and down are drawn apart"


def test_the_corners_of_a_random_crop_are_the_squares_own(monkeypatch):
    images = squares(2, 16)
    augment = AugmentRecipe(crop="random")
    drawn(monkeypatch, 0.0)
    assert np.abs(augmented(images, plain(16, 12), augment) - images[:, :12, :12]).max() < 1e-2
    drawn(monkeypatch, 1.0)
    assert np.abs(augmented(images, plain(16, 12), augment) - images[:, 4:, 4:]).max() < 1e-2


def test_brightness_and_contrast_by_hand(monkeypatch):
    images = np.array([[[[100] * 3, [100] * 3], [[100] * 3, [140] * 3]]], np.uint8)  # mean 110
    drawn(monkeypatch, 1.0)
    found = augmented(images, plain(2), AugmentRecipe(brightness=0.1))
    assert np.abs(found[0, :, :, 0] - [[125.5, 125.5], [125.5, 165.5]]).max() < 1e-2
    found = augmented(images, plain(2), AugmentRecipe(contrast=0.5))
    assert np.abs(found[0, :, :, 0] - [[95, 95], [95, 155]]).max() < 1e-2
    found = augmented(images, plain(2), AugmentRecipe(brightness=0.5))
    assert np.abs(found[0, :, :, 0] - [[227.5, 227.5], [227.5, 255]]).max() < 1e-2, "white is the end"
    drawn(monkeypatch, 0.0)
    found = augmented(images, plain(2), AugmentRecipe(brightness=0.1, contrast=0.5))
    assert np.abs(found[0, :, :, 0] - [[79.5, 79.5], [79.5, 99.5]]).max() < 1e-2


# --- windows cut out of bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("augment", "side", "size"),
    [
        (AugmentRecipe(crop="random", flip=True), 40, 32),
        (AugmentRecipe(crop="random", flip=True, scale=(0.7, 1.5)), 40, 32),
        (AugmentRecipe(flip=True, scale=(0.5, 2.0), translate=0.3), 33, 33),
        (AugmentRecipe(crop="random", scale=(0.9, 1.3), translate=0.1, brightness=0.1, contrast=0.4), 41, 36),
    ],
)
def test_upright_windows_agree_with_sampling_them(augment, side, size):
    images = torch.from_numpy(squares(60, side))
    maps = affine_maps(60, plain(side, size), augment, torch.Generator().manual_seed(1))
    cut, sampled = torch.empty(2, 60, size, size, 3)
    _windows(images, maps, cut)
    _sample(images, maps, sampled)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    # bytes are rounded, and resized with weights of 16 bits; the outermost pixels mix nothing in from beside the window
    assert (cut - sampled)[inside].abs().max() <= 1.01
    exact = (maps[:, 1, 1] * side).round() == size
    assert (cut - sampled)[exact].abs().max() < 1e-2 if exact.any() else True
    draws = _light_draws(augment, 60, torch.Generator().manual_seed(2))
    _light(cut, draws)
    _light(sampled, draws)
    assert (cut - sampled)[inside].abs().mean() < 2


@pytest.mark.parametrize(
    "augment", [AugmentRecipe(crop="random", flip=True, scale=(0.9, 1.3)), AugmentRecipe(rotate=10)]
)
def test_images_do_not_depend_on_the_number_of_threads(augment):
    images, threads, found = torch.from_numpy(squares(7, 24)), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(prepare(images, plain(24, 16), augment, torch.Generator().manual_seed(0)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_a_turned_window_is_sampled_and_a_square_is_not_changed_by_it():
    images = squares(3, 16)
    kept = images.copy()
    for augment in (None, AugmentRecipe(crop="random"), AugmentRecipe(rotate=10), AugmentRecipe(scale=(0.9, 1.3))):
        prepare(torch.from_numpy(images), plain(16, 12), augment, torch.Generator().manual_seed(0))
    assert np.array_equal(images, kept)


# --- made in the background -------------------------------------------------------------------------------------------


def same(first: Batch, second: Batch) -> bool:
    pairs = zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetched_batches_are_those_asked_for_in_any_order(depth):
    plainly, ahead = paired(9, 4, 5), Prefetched(paired(9, 4, 5), depth)
    asked = [(0, step, 6) for step in range(6)] + [(1, 2, 4), (1, 3, 4), (0, 1, 6), (0, 1, 6)]
    for stage, step, steps in asked:
        assert same(ahead.get(stage, step, steps), plainly.get(stage, step))
    ahead.close()
    assert ahead.waited_s > 0


def test_prefetching_is_bounded_and_ends_with_the_stage():
    made: list[int] = []

    class Counted(PairedBatches):
        def get(self, stage: int, step: int) -> Batch:
            made.append(step)
            return super().get(stage, step)

    source = greys(8, True)
    ahead = Prefetched(Counted(source, source, PLAIN, AugmentRecipe(), 4, 0), 2)
    ahead.get(0, 0, 4)
    ahead.get(0, 1, 4)
    ahead.get(0, 2, 4)
    ahead.get(0, 3, 4)
    ahead.close()
    assert made == [0, 1, 2, 3], "each once, in order, none after the last"


def test_what_goes_wrong_in_the_background_is_raised_where_the_batch_is_asked_for():
    class Broken(PairedBatches):
        def get(self, stage: int, step: int) -> Batch:
            if step == 2:
                raise InputError("gone")
            return super().get(stage, step)

    source = greys(8, True)
    ahead = Prefetched(Broken(source, source, PLAIN, AugmentRecipe(), 4, 0), 2)
    ahead.get(0, 0)
    ahead.get(0, 1)
    with pytest.raises(InputError, match="gone"):
        ahead.get(0, 2)
    ahead.close()
