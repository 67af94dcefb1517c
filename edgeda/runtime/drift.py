"""Say when a camera no longer looks like what the model was adapted to.

Of every frame a few numbers are kept: its light, contrast and detail, and how sure the model is. After
`window` frames each number's distribution is held against that of the target images at export, by the
two-sample Kolmogorov-Smirnov test: with n frames and m reference images,

    P(D > d) <= 2 exp(-2 d^2 n m / (n + m))        (Smirnov's bound, exact for large n and m)

A window alarms when any of the K numbers passes the threshold d at level `rate * window / K`. Windows do
not overlap, so by the union bound over numbers and the linearity of expectation over windows at most `rate`
false alarms are expected per frame, however long it runs, as long as the frames within a window are
independent draws. Neighbouring frames of a video are not: give it one frame a second or so, not thirty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError
from edgeda.runtime.preprocessing import Pixels

STATISTICS = ("red", "green", "blue", "contrast", "detail", "confidence", "entropy")
KEPT = 128
"""Quantiles of each statistic in a reference."""
FEWEST = 20
"""Images that a reference needs."""
WINDOW = 100
FALSE_ALARMS_PER_FRAME = 1e-6


def describe(squares: Pixels, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """STATISTICS `(B, K)` of stored squares uint8 `(B, S, S, 3)` and what the model said of them, `(B, C)`.

    Mean red, green and blue, standard deviation of the light, mean step between neighbouring pixels of a row,
    all in [0, 1]; the largest probability; entropy as a part of log C. What the model says is rounded to
    hundredths, so that the rounding of an int8 or fp16 file is no drift.
    """
    step = max(1, squares.shape[1] // 56)
    thin = squares[:, ::step, ::step].astype(np.float64) / 255
    colours = thin.mean(axis=(1, 2))
    contrast = thin.mean(axis=3).std(axis=(1, 2))
    rows = squares[:, ::step, :, 1].astype(np.int16)
    detail = np.abs(np.diff(rows, axis=2)).mean(axis=(1, 2)) / 255 if rows.shape[2] > 1 else np.zeros(len(rows))
    likely = np.asarray(probabilities, np.float64)
    entropy = -(likely * np.log(np.maximum(likely, 1e-30))).sum(axis=1) / math.log(max(2, likely.shape[1]))
    said = np.round(np.stack([likely.max(axis=1), entropy], axis=1), 2)
    return np.concatenate([np.round(np.column_stack([colours, contrast, detail]), 4), said], axis=1)


@dataclass(frozen=True)
class DriftReference:
    """What target images look like: `count` images, and of each statistic up to KEPT of its sorted values."""

    count: int
    values: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, described: NDArray[np.float64]) -> DriftReference:
        """From `describe`'s rows `(M, K)`; InputError for fewer than FEWEST."""
        if len(described) < FEWEST:
            raise InputError(f"a drift reference needs at least {FEWEST} images, got {len(described)}")
        ordered = np.sort(described, axis=0)
        kept = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), KEPT)).round().astype(int))
        return cls(len(ordered), dict(zip(STATISTICS, ordered[kept].T, strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"images": self.count, "statistics": {name: values.tolist() for name, values in self.values.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any] | None) -> DriftReference:
        """The inverse of `to_dict`; InputError for a manifest without a reference, or a broken one."""
        if stored is None:
            raise InputError("the model carries no drift reference; export its run again with this edgeda")
        try:
            count = int(stored["images"])
            values = {name: np.sort(np.asarray(stored["statistics"][name], np.float64)) for name in STATISTICS}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the model's drift reference cannot be read: {error!r}") from error
        if count < FEWEST or any(
            one.ndim != 1 or not one.size or not np.isfinite(one).all() for one in values.values()
        ):
            raise InputError("the model's drift reference needs finite statistics of at least 20 images")
        return cls(count, values)


@dataclass(frozen=True)
class DriftReport:
    """What one window said: the statistic that passed the threshold by most, or came nearest to it."""

    frames: int
    """Frames seen so far."""
    drifted: bool
    statistic: str
    distance: float
    """Kolmogorov-Smirnov distance of that statistic, 0 to 1."""
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "frames": self.frames,
            "drifted": self.drifted,
            "statistic": self.statistic,
            "distance": round(self.distance, 4),
            "threshold": round(self.threshold, 4),
        }


class DriftMonitor:
    """Running statistics of one camera, tested every `window` frames; keeps window x K numbers.

    A change of camera is reported at the end of the first window that is all new: within two windows.
    `on_change` is called with the report of a window that drifted after one that had not, or the
    other way round. Raises InputError for a window that no distance could ever make alarm.
    """

    def __init__(
        self,
        reference: DriftReference,
        window: int = WINDOW,
        rate: float = FALSE_ALARMS_PER_FRAME,
        on_change: Callable[[DriftReport], None] | None = None,
    ) -> None:
        if window < 2 or not 0 < rate * window < 1:
            raise InputError(f"drift needs a window of at least 2 frames and 0 < rate x window < 1: {window}, {rate}")
        self.threshold = threshold(window, reference.count, rate)
        if self.threshold >= 1:
            raise InputError(
                f"a drift window of {window} frames against {reference.count} images can never alarm at {rate:.0e} "
                "false alarms a frame; take a longer window"
            )
        self.window, self.rate = window, rate
        self.drifted = False
        self.alarms = 0
        self.last: DriftReport | None = None
        self._reference = reference
        self._on_change = on_change
        self._rows: list[NDArray[np.float64]] = []
        self.frames = 0
        """Shown so far."""

    def update(self, squares: Pixels, probabilities: NDArray[np.floating[Any]]) -> DriftReport | None:
        """Take frames in, `(B, S, S, 3)` and `(B, C)`; the last report of a window that changed the state."""
        return self.update_described(describe(squares, probabilities))

    def update_described(self, rows: NDArray[np.float64]) -> DriftReport | None:
        """The same for rows of `describe`, `(B, K)`."""
        changed: DriftReport | None = None
        for row in rows:
            self._rows.append(row)
            self.frames += 1
            if len(self._rows) == self.window:
                changed = self._judge(np.stack(self._rows)) or changed
                self._rows.clear()
        return changed

    def _judge(self, rows: NDArray[np.float64]) -> DriftReport | None:
        distances = {
            name: distance(rows[:, at], self._reference.values[name], self._reference.count)
            for at, name in enumerate(STATISTICS)
        }
        worst = max(distances, key=lambda name: distances[name])
        drifted = distances[worst] > self.threshold
        self.last = DriftReport(self.frames, drifted, worst, distances[worst], self.threshold)
        self.alarms += drifted
        if drifted == self.drifted:
            return None
        self.drifted = drifted
        if self._on_change is not None:
            self._on_change(self.last)
        return self.last


def threshold(window: int, count: int, rate: float) -> float:
    """The distance that a window passes by chance with probability at most `rate * window`, over all statistics."""
    level = rate * window / len(STATISTICS)
    return math.sqrt(math.log(2 / level) / 2 * (1 / window + 1 / count))


def distance(values: NDArray[np.float64], kept: NDArray[np.float64], count: int) -> float:
    """Kolmogorov-Smirnov distance of `values` to a reference of `count` values, of which `kept` quantiles are known.

    Less 1 / len(kept) where not all are known, by which much the stored curve can be wrong.
    """
    at = np.concatenate([values, kept])
    ours = np.searchsorted(np.sort(values), at, side="right") / len(values)
    theirs = np.searchsorted(kept, at, side="right") / len(kept)
    unsure = 0.0 if len(kept) == count else 1 / len(kept)
    return max(0.0, float(np.abs(ours - theirs).max()) - unsure)
