"""What a camera's images look like, in a few numbers, and which cameras look alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgeda.runtime.drift import STATISTICS, describe, distance
from edgeda.runtime.preprocessing import Pixels

Record = dict[str, Any]

SEEN = STATISTICS[:5]
"""Statistics of the drift monitor that need no network: red, green, blue, contrast, detail."""
LOOKED = 256
"""Images of a camera, spread over all of them, that are looked at."""
QUANTILES = 64
"""Of each statistic, that are kept."""


def look(squares: Pixels) -> Record:
    """Quantiles of SEEN over stored squares uint8 `(N, S, S, 3)`; JSON values."""
    nothing = np.full((len(squares), 2), 0.5)  # no network has said anything yet
    ordered = np.sort(describe(squares, nothing)[:, : len(SEEN)], axis=0)
    kept = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), QUANTILES)).round().astype(int))
    return {"images": len(squares), "statistics": dict(zip(SEEN, ordered[kept].T.tolist(), strict=True))}


def apart(one: Mapping[str, Any], other: Mapping[str, Any], enough: float = 1.0) -> tuple[float, str]:
    """The largest Kolmogorov-Smirnov distance of two looks, 0 to 1, and of which statistic.

    Past `enough` the rest is not looked at: the distance is then a lower bound.
    """
    largest, which = 0.0, SEEN[0]
    for name in SEEN:
        mine, theirs = np.asarray(one["statistics"][name]), np.asarray(other["statistics"][name])
        found = distance(mine, theirs, other["images"])
        if found > largest:
            largest, which = found, name
        if largest > enough:
            break
    return largest, which


def alike(looks: Iterable[tuple[str, Mapping[str, Any]]], most: float) -> dict[str, tuple[str, float]]:
    """By camera: the one it looks like, earlier in order, and their distance; those that represent others are not in.

    Greedy: a camera joins the nearest earlier camera that represents a group, within `most`, or else represents one.
    """
    chosen: list[tuple[str, Mapping[str, Any]]] = []
    found: dict[str, tuple[str, float]] = {}
    for name, seen in looks:
        near = [(apart(seen, other, most)[0], representative) for representative, other in chosen]
        nearest = min(near, default=(2.0, ""))
        if nearest[0] <= most:
            found[name] = (nearest[1], round(nearest[0], 4))
        else:
            chosen.append((name, seen))
    return found
