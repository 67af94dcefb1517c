"""What the target looks like at export, for the drift monitor on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.data import spread
from edgeda.runtime.classifier import softmax
from edgeda.runtime.drift import FEWEST, DriftReference, describe
from edgeda.runtime.preprocessing import Pixels

LIMIT = 256


def drift_reference(squares: Pixels, logits: NDArray[np.float32]) -> dict[str, Any] | None:
    """The manifest's field `drift` from target images, stored squares uint8 `(N, S, S, 3)`, and their logits `(N, C)`.

    None for fewer than 20 images, which say too little.
    """
    if len(squares) < FEWEST:
        return None
    chosen = spread(len(squares), LIMIT)
    return DriftReference.of(describe(squares[chosen], softmax(logits[chosen]))).to_dict()
