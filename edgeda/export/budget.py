"""How much accuracy an int8 model may lose, which layers cost it, and keeping those in higher precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError
from edgeda.export.parity import Logits, accuracy
from edgeda.report.tables import Column, text_table
from edgeda.runtime.preprocessing import Pixels, Preprocessing, model_input

log = logging.getLogger(__name__)

MOST_KEPT = 0.5
"""At most this share of the layers stays in higher precision: beyond it there is little left of int8."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The fp32 network's answers on the images that every artifact is judged on."""

    squares: Pixels
    preprocessing: Preprocessing
    logits: Logits
    """Of the fp32 network, `(N, C)`."""
    labels: NDArray[np.int64] | None
    _inputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        """What a drop is points of: `accuracy`, or without labels `agreement with the fp32 student`."""
        return "accuracy" if self.labels is not None else "agreement with the fp32 student"

    def inputs(self, layout: str) -> NDArray[Any]:
        """The images as a model of `layout` takes them."""
        if layout not in self._inputs:
            self._inputs[layout] = model_input(self.squares, self.preprocessing, layout)
        return self._inputs[layout]

    def take(self, chosen: NDArray[np.int64]) -> Reference:
        """The same of some of the images."""
        labels = None if self.labels is None else self.labels[chosen]
        return Reference(self.squares[chosen], self.preprocessing, self.logits[chosen], labels)

    def drop(self, logits: Logits) -> float:
        """Points lost against the fp32 network, in `measure`; negative where some are won."""
        if self.labels is None:
            return 100.0 - 100.0 * float((logits.argmax(1) == self.logits.argmax(1)).mean())
        return accuracy(self.logits, self.labels) - accuracy(logits, self.labels)


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer alone does."""

    node: str
    layer: str
    drop: float
    error_db: float
    """10 log10 of the mean square of its logit errors over that of the logits: larger is worse."""


SENSITIVITY_COLUMNS = (
    Column("layer", "int8 in this layer alone"), Column("drop", "points lost", "", 2),
    Column("error_db", "error", "dB", 1),
)  # fmt: skip


def within(
    drop_of: Callable[[Collection[str]], float],
    ranking: Callable[[], Sequence[Sensitivity]],
    max_drop: float,
    measure: str,
    name: str,
) -> tuple[list[Sensitivity], float]:
    """The fewest of the worst layers to keep in higher precision so that the drop is at most `max_drop` points.

    `drop_of` builds and judges the model with the nodes kept; `ranking` is only asked when int8 everywhere loses too
    much. Raises InputError, with the table of layers on the log, when half of the layers are not enough.
    """
    drop = drop_of(())
    if drop <= max_drop:
        return [], drop
    worst = sorted(ranking(), key=lambda one: (-one.error_db, one.node))
    log.info("%s loses %.2f points of %s everywhere in int8; keeping the worst layers out of it", name, drop, measure)
    most = max(1, int(MOST_KEPT * len(worst)))
    best = drop
    for count in _counts(most):
        kept = worst[:count]
        drop = drop_of([one.node for one in kept])
        if drop <= max_drop:
            return kept, drop
        best = min(best, drop)
    rows = [vars(one) for one in worst]
    log.warning("layers by what int8 does to each alone:\n%s", text_table(rows, SENSITIVITY_COLUMNS, width=100))
    raise InputError(
        f"{name} loses at least {best:.2f} points of {measure} (--max-drop {max_drop:g}) even with {most} of "
        f"{len(worst)} layers in higher precision; allow more, or give other --calibration images"
    )


def sensitivity(node: str, layer: str, reference: Logits, logits: Logits, drop: float) -> Sensitivity:
    """One row of the table from the logits `(N, C)` of the network with this layer alone in int8."""
    signal = float(np.square(reference, dtype=np.float64).mean()) or 1.0
    noise = float(np.square(logits.astype(np.float64) - reference).mean())
    return Sensitivity(node, layer, drop, 10 * float(np.log10(max(noise, 1e-20) / signal)))


def _counts(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... and `most`."""
    steps = [1, 2, 3, *(base * 2**power for power in range(16) for base in (4, 6))]
    return sorted({count for count in steps if count < most} | {most})
