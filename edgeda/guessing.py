"""Whether a network only guesses, and what says so: decided here alone, for the verdict and whoever repeats it."""

from __future__ import annotations

import math
from collections.abc import Mapping

UNTRAINED = 0.1
"""Share of the way from chance to certainty (im) or to no error (accuracy) under which a network guesses."""


def like_guessing(accuracy: float, classes: int) -> bool:
    """Whether so many percent right, of so many classes, are close to guessing; never of fewer than two classes."""
    if classes < 2:
        return False
    chance = 100.0 / classes
    return accuracy < chance + UNTRAINED * (100.0 - chance)


def guessing(classes: int, im: float | None, accuracies: Mapping[str, float | None]) -> str | None:
    """What says that a network guesses, in words: its `im` on the target, or the percent it gets right on something.

    None when nothing does, or when nothing is known.
    """
    most = math.log(max(classes, 1))
    signs = [f"im {im:.2g} of at most {most:.3g}"] if im is not None and im < UNTRAINED * most else []
    signs += [
        f"{percent:.1f} % right on {where}, by chance {100 / classes:.1f} %"
        for where, percent in accuracies.items()
        if percent is not None and like_guessing(percent, classes)
    ]
    return f"close to guessing ({'; '.join(signs)}): train longer" if signs else None
