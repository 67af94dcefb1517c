"""The boxes of a detector, cut out of a frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeda.errors import InputError
from edgeda.runtime.preprocessing import Pixels, part

Crop = Image.Image | Pixels


def cut(frame: Crop, boxes: Any) -> list[Crop | None]:
    """The part of `frame` in each box `(x1, y1, x2, y2)`, None where a box holds no pixel of it.

    Boxes `(N, 4)` in pixels are widened to whole pixels and clipped to the frame. Raises InputError for
    another shape, and for a box that is not finite, by its index.
    """
    width, height = frame.size if isinstance(frame, Image.Image) else frame.shape[1::-1]
    corners = _checked(boxes)
    low = np.clip(np.floor(corners[:, :2]), 0, (width, height)).astype(np.int64)
    high = np.clip(np.ceil(corners[:, 2:]), 0, (width, height)).astype(np.int64)
    right_way_round = np.all(corners[:, :2] < corners[:, 2:], axis=1)
    holds = np.asarray(right_way_round & np.all(low < high, axis=1))
    crops: list[Crop | None] = []
    for (left, top), (right, bottom), some in zip(low.tolist(), high.tolist(), holds.tolist(), strict=True):
        crops.append(part(frame, (left, top, right, bottom)) if some else None)
    return crops


def _checked(boxes: Any) -> NDArray[np.float64]:
    try:
        corners = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"boxes must be numbers (N, 4): x1, y1, x2, y2 in pixels, got {boxes!r:.80}") from error
    if corners.size == 0:
        return np.zeros((0, 4))
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise InputError(f"boxes must be (N, 4): x1, y1, x2, y2 in pixels, got {corners.shape}")
    bad = np.flatnonzero(~np.isfinite(corners).all(axis=1))
    if len(bad):
        raise InputError(f"box {bad[0]} is not finite: {corners[bad[0]].tolist()}")
    return corners
