"""Pair source and target images into batches, as a pure function of seed and step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeda.data.augment import prepare
from edgeda.data.images import ImageSet
from edgeda.recipe import AugmentRecipe
from edgeda.runtime.preprocessing import Preprocessing


@dataclass(frozen=True)
class Batch:
    """What a method may see: it has no field for target labels.

    `source_images` and `target_images` `(b, 3, H, W)` normalized: on several devices the process's part of the batch.
    `source_labels` int64 `(B,)`: those of the whole batch, as are the outputs that `Workshop` gives.
    """

    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor


class PairedBatches:
    """Batch number `step` of a training stage, the same whenever it is asked for.

    Each domain is walked in a new random order every pass; a pass ends and the next begins inside a
    batch, so no image is dropped and the shorter domain goes round as often as the longer needs. An
    epoch is one pass of the source, rounded to whole batches (at least one).

    With `part` (r, n) images are those of the r-th of n equal parts of the batch: the same images, augmented in
    the same way, as the batch of a process alone has in these places.
    """

    def __init__(
        self,
        source: ImageSet,
        target: ImageSet,
        preprocessing: Preprocessing,
        augment: AugmentRecipe,
        batch_size: int,
        seed: int,
        device: torch.device | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if source.labels is None:
            raise ValueError("the source needs labels")
        self._source, self._target, self._labels = source, target, source.labels
        self._preprocessing, self._augment = preprocessing, augment
        self._batch_size, self._seed = batch_size, seed
        self._device = device or torch.device("cpu")
        count = batch_size // part[1]
        self._part = slice(part[0] * count, (part[0] + 1) * count)
        self._orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}
        side = preprocessing.stored_size
        blank = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=self._device)
        # what has to be compiled is compiled now, not while training waits for its first batch
        prepare(blank, preprocessing, augment, torch.Generator(), (slice(0, 1), batch_size))

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return max(1, round(len(self._source) / self._batch_size))

    def get(self, stage: int, step: int) -> Batch:
        """Batch `step`, counted over the whole stage; `stage` is any number that stands for the stage."""
        random = torch.Generator().manual_seed(_mix(self._seed, 7, stage, step))
        source = self._positions(0, stage, step, len(self._source))
        target = self._positions(1, stage, step, len(self._target))
        return Batch(
            self._images(self._source, source, random),
            torch.from_numpy(self._labels[source]).to(self._device),
            self._images(self._target, target, random),
        )

    def names(self, stage: int, step: int) -> tuple[list[str], list[str]]:
        """Where the source and the target images of batch `step` came from."""
        source = self._positions(0, stage, step, len(self._source))
        target = self._positions(1, stage, step, len(self._target))
        return [self._source.names[at] for at in source], [self._target.names[at] for at in target]

    def _images(self, images: ImageSet, positions: NDArray[np.int64], random: torch.Generator) -> Tensor:
        squares = torch.from_numpy(images.squares[positions[self._part]]).to(self._device)
        return prepare(squares, self._preprocessing, self._augment, random, (self._part, len(positions)))

    def _positions(self, domain: int, stage: int, step: int, count: int) -> NDArray[np.int64]:
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        passes = places // count
        return np.concatenate(
            [
                self._order(domain, stage, int(number), count)[places[passes == number] % count]
                for number in np.unique(passes)
            ]
        )

    def _order(self, domain: int, stage: int, number: int, count: int) -> NDArray[np.int64]:
        key = (domain, stage, number)
        if key not in self._orders:
            if len(self._orders) > 8:
                self._orders.clear()
            self._orders[key] = np.random.default_rng(_mix(self._seed, domain, stage, number)).permutation(count)
        return self._orders[key]


def _mix(*numbers: int) -> int:
    """A well-spread 63-bit seed from small numbers."""
    return int(np.random.SeedSequence([abs(n) for n in numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))
