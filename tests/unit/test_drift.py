"""The drift monitor: Smirnov's distance by hand, the stated rate of false alarms, and a camera that changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeda.errors import InputError
from edgeda.runtime.drift import (
    KEPT,
    STATISTICS,
    DriftMonitor,
    DriftReference,
    describe,
    distance,
    threshold,
)


def cameras(count: int, seed: int, shift: float = 0.0) -> NDArray[np.float64]:
    """Rows of statistics with the shapes real ones have, moved by `shift` standard deviations."""
    random = np.random.default_rng(seed)
    rows = 0.4 + 0.1 * (random.standard_normal((count, len(STATISTICS))) + shift)
    rows[:, 5:] = np.round(random.beta(8, 2, (count, 2)), 2)  # confidence and entropy come in hundredths
    return rows


def test_statistics_by_hand() -> None:
    stripes = np.zeros((1, 8, 8, 3), np.uint8)
    stripes[:, :, ::2] = (255, 255, 0)  # columns of yellow and black: every step of green is a whole one
    (row,) = describe(stripes, np.array([[0.75, 0.25]]))
    light = 255 * 2 / 3 / 255
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert row == pytest.approx([0.5, 0.5, 0.0, round(light / 2, 4), 1.0, 0.75, round(entropy, 2)])


def test_distance_and_threshold_by_hand() -> None:
    # at 2 all of (1, 2) lie below or at, and half of (1, 2, 3, 4)
    assert distance(np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]), 4) == 0.5
    assert distance(np.array([5.0]), np.array([1.0, 2.0]), 2) == 1.0
    assert distance(np.array([3.0, 3.0]), np.array([3.0, 3.0, 3.0]), 3) == 0.0
    # of 1,000 values only 4 quantiles are known: the curve between them is unsure by a quarter
    assert distance(np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]), 1000) == 0.25
    expected = math.sqrt(math.log(2 * 7 / 1e-4) / 2 * (1 / 100 + 1 / 400))
    assert threshold(100, 400, 1e-6) == pytest.approx(expected)


def test_the_threshold_holds_its_level() -> None:
    """At a rate high enough to count: 2,000 windows at level 5 % alarm no more than 5 % of the time."""
    reference = DriftReference.of(cameras(400, 0))
    monitor = DriftMonitor(reference, window=50, rate=0.05 / 50)
    monitor.update_described(cameras(2000 * 50, 1))
    assert monitor.alarms / 2000 < 0.05


def test_no_alarm_in_twenty_thousand_frames_and_one_soon_after_a_change() -> None:
    changes = []
    monitor = DriftMonitor(DriftReference.of(cameras(256, 0)), on_change=changes.append)
    for seed in range(10):
        assert monitor.update_described(cameras(2000, 10 + seed)) is None
    assert monitor.alarms == 0
    monitor.update_described(cameras(37, 3))  # the change falls inside a window
    monitor.update_described(cameras(163, 4, shift=1.5))
    assert [one.drifted for one in changes] == [True]
    assert changes[0].distance > changes[0].threshold == monitor.threshold
    assert changes[0].statistic in STATISTICS[:5]
    monitor.update_described(cameras(200, 5))
    assert [one.drifted for one in changes] == [True, False]


def test_references_are_small_and_survive_json() -> None:
    reference = DriftReference.of(cameras(5000, 0))
    stored = reference.to_dict()
    assert all(len(values) == KEPT for values in stored["statistics"].values())
    again = DriftReference.from_dict(stored)
    assert again.count == 5000
    for name in STATISTICS:
        np.testing.assert_array_equal(again.values[name], reference.values[name])


def test_references_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="at least 20 images, got 19"):
        DriftReference.of(cameras(19, 0))
    with pytest.raises(InputError, match="carries no drift reference"):
        DriftReference.from_dict(None)
    good = DriftReference.of(cameras(30, 0))
    for broken in ({}, {"images": 30}, {**good.to_dict(), "images": "many"}, {**good.to_dict(), "statistics": {}}):
        with pytest.raises(InputError, match="cannot be read"):
            DriftReference.from_dict(broken)
    with pytest.raises(InputError, match="needs finite"):
        DriftReference.from_dict({"images": 30, "statistics": {name: [math.nan] for name in STATISTICS}})
    with pytest.raises(InputError, match="can never alarm"):
        DriftMonitor(good, window=5)
    with pytest.raises(InputError, match="window of at least 2"):
        DriftMonitor(good, window=1)
