"""The compiled sampling against torch's: numbers, maps of any kind, what is read, and when it is used."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeda.data import augment
from edgeda.data.augment import _light, _light_draws, _sample, affine_maps, prepare
from edgeda.kernels import sampling
from edgeda.kernels.compiled import available
from edgeda.kernels.sampling import can_sample, sample
from edgeda.recipe import AugmentRecipe
from edgeda.runtime.preprocessing import Preprocessing

compiled = pytest.mark.skipif(not available(), reason="numba (the extra fast) is not installed")
PLAIN = torch.tensor([[1.0] * 3, [0.0] * 3])
"""Bytes as they are."""
NO_LIGHT = torch.empty(0, 0)
GREY_LEVELS = 0.02
"""Of 255. Places are off by some ulps of float32, 4e-6 pixels each at 40; neighbours differ by 255 at most."""
ZOOM = AugmentRecipe(crop="random", flip=True, scale=(0.9, 1.3))
TURN = AugmentRecipe(crop="random", flip=True, scale=(0.7, 1.4), rotate=30, shear=10, translate=0.2)


def squares(count: int, side: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def expected(images: Tensor, maps: Tensor, light: Tensor, size: int) -> Tensor:
    """By torch, in units of bytes."""
    seen = torch.empty(len(images), size, size, 3)
    _sample(images, maps, seen)
    _light(seen, light)
    return seen


@compiled
@pytest.mark.parametrize(
    ("recipe", "side", "size"),
    [
        (AugmentRecipe(crop="random", flip=True), 40, 32),
        (ZOOM, 41, 36),
        (TURN, 41, 36),
        (AugmentRecipe(translate=1.0, scale=(0.3, 3.0)), 33, 33),
        (AugmentRecipe(rotate=180, shear=60, translate=1.0, scale=(0.1, 10.0)), 23, 17),
        (AugmentRecipe(rotate=180), 2, 5),
    ],
)
@pytest.mark.parametrize("lit", [False, True])
def test_images_are_torchs_to_rounding(recipe: AugmentRecipe, side: int, size: int, lit: bool):
    images, random = squares(60, side), torch.Generator().manual_seed(1)
    maps = affine_maps(60, Preprocessing(size, "crop", size / max(side, size)), recipe, random)
    light = _light_draws(AugmentRecipe(brightness=0.3, contrast=0.5), 60, random) if lit else NO_LIGHT
    found = sample(images, maps, light, PLAIN, size)
    # contrast enlarges what differs, by half at most
    assert (found - expected(images, maps, light, size)).abs().max() < GREY_LEVELS * (1.5 if lit else 1)


@compiled
def test_colours_are_normalized_each_by_itself():
    images, normal = squares(3, 9), torch.tensor([[2.0, 3.0, 5.0], [-1.0, 0.5, 7.0]])
    maps = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(3, 1, 1)
    for light in (NO_LIGHT, torch.zeros(2, 3)):
        found = sample(images, maps, light, normal, 9)
        assert (found - (images * normal[0] + normal[1])).abs().max() < 5 * GREY_LEVELS


@compiled
@pytest.mark.parametrize("side", [2, 3, 37])
def test_nothing_outside_the_squares_is_read(side: int):
    """In a child, with squares right after a page that may not be read, then right before one."""
    kinds = [(zoom, shift) for zoom in (0.1, 1.0, 10.0, 1e30, np.inf, np.nan) for shift in (0, -50, 50, np.inf, np.nan)]
    kinds += [(-zoom, shift) for zoom, shift in kinds]
    kinds = [(1.0, -50.0), *kinds, (1.0, 50.0)]  # the first square's first pixel and the last one's last
    maps = torch.tensor([[[zoom, 0.3, shift], [0.3, zoom, shift]] for zoom, shift in kinds], dtype=torch.float32)
    images, page = squares(len(maps), side), mmap.PAGESIZE
    pages = -(-images.numel() // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(start, page, 0) == 0
    assert protect(start + (pages + 1) * page, page, 0) == 0
    places = (page, (pages + 1) * page - images.numel())
    everything = np.frombuffer(memory, np.uint8)
    held = [torch.from_numpy(everything[at : at + images.numel()]).view(images.shape) for at in places]
    sample(images, maps, NO_LIGHT, PLAIN, 11)  # compiled before the child begins

    def ends_well(of: Tensor) -> bool:
        of.copy_(images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it uses no thread of its parent's
            child = os.fork()
        if child == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            sampling._kernel()(len(of), side, 11, 0, of, maps, NO_LIGHT, PLAIN, ramp, scratch, out, threads=1)
            os._exit(0)
        return os.waitpid(child, 0)[1] == 0

    ramp, scratch = torch.arange(11.0), torch.empty(len(maps), sampling.ROWS, 11)
    out = torch.empty(len(maps), 11, 11, 3)
    assert all(ends_well(each) for each in held)
    finite = maps.isfinite().all(dim=(1, 2)) & (maps.abs() < 1e9).all(dim=(1, 2))
    seen = sample(images, maps, NO_LIGHT, PLAIN, 11)
    assert ((seen >= 0) & (seen <= 255)).all()
    differences = (seen - expected(images, maps, NO_LIGHT, 11)).abs()
    assert differences[finite].max() < 0.5  # float32 counts in steps of 6e-5 pixels a thousand pixels away


@compiled
@pytest.mark.parametrize("recipe", [ZOOM, TURN, AugmentRecipe(contrast=0.5)])
def test_threads_and_processes_change_nothing(recipe: AugmentRecipe, monkeypatch: pytest.MonkeyPatch):
    """A process's part of a batch is sampled as the whole is, be it too small by itself."""
    monkeypatch.setattr(sampling, "WORTH_COMPILING", 7 * 16 * 16)
    images, threads, found = squares(7, 24), torch.get_num_threads(), []

    def prepared(own: slice = slice(None)) -> Tensor:
        random = torch.Generator().manual_seed(0)
        return prepare(images[own], Preprocessing(16, crop_pct=2 / 3), recipe, random, (own, 7))

    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(prepared())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], torch.cat([prepared(slice(0, 3)), prepared(slice(3, 7))]))


def uses_kernel(monkeypatch: pytest.MonkeyPatch, recipe: AugmentRecipe | None, count: int = 11) -> bool:
    """Whether a batch at 224 px is the kernel's work: 11 such images have more than 2**19 pixels."""
    used: list[int] = []

    def noted(images: Tensor, *_: object) -> Tensor:
        used.append(len(images))
        return torch.zeros(len(images), 224, 224, 3)

    monkeypatch.setattr(augment, "sample", noted)
    prepare(torch.zeros(count, 256, 256, 3, dtype=torch.uint8), Preprocessing(224), recipe)
    return bool(used)


@compiled
@pytest.mark.parametrize("recipe", [AugmentRecipe(), ZOOM, TURN])
def test_large_batches_are_sampled_by_the_kernel(recipe: AugmentRecipe, monkeypatch: pytest.MonkeyPatch):
    assert uses_kernel(monkeypatch, recipe)
    assert not uses_kernel(monkeypatch, recipe, count=10), "too few to compile for"


def test_what_is_evaluated_is_not_sampled(monkeypatch: pytest.MonkeyPatch):
    assert not uses_kernel(monkeypatch, None, count=64)


def test_without_numba_torch_samples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampling, "available", lambda: False)
    assert not uses_kernel(monkeypatch, TURN)


@compiled
def test_only_square_bytes_on_a_cpu_are_sampled():
    assert can_sample(torch.empty(1, 8, 8, 3, dtype=torch.uint8), 32, 224)
    assert not can_sample(torch.empty(1, 8, 9, 3, dtype=torch.uint8), 32, 224)
    assert not can_sample(torch.empty(1, 1, 1, 3, dtype=torch.uint8), 32, 224)
    assert not can_sample(torch.empty(1, 8, 8, 3), 32, 224)
    assert not can_sample(torch.empty(1, 8, 8, 3, dtype=torch.uint8, device="meta"), 32, 224)
