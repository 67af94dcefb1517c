"""Schedules: pure functions of progress p in [0, 1], the fraction of the stage's steps already done."""

from __future__ import annotations

import math
from collections.abc import Callable


def beta(progress: float, start: float = 0.1, end: float = 0.9) -> float:
    """Weight of distillation against adaptation (KD-UDA eqs. 6-7).

    beta_t = b * exp(g * t) with g = log(f / b) / epochs, which is b * (f / b) ** p for t = p * epochs.
    """
    return float(start * (end / start) ** progress)


def gamma(progress: float, steepness: float = 10.0) -> float:
    """Ramp from 0 to nearly 1 (DANN, TCP): 2 / (1 + exp(-10 p)) - 1."""
    return 2.0 / (1.0 + math.exp(-steepness * progress)) - 1.0


def constant(progress: float) -> float:
    """No change of the learning rate."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def inverse(progress: float, alpha: float = 10.0, power: float = 0.75) -> float:
    """The annealing of DANN and DAN: (1 + 10 p) ** -0.75."""
    return float((1.0 + alpha * progress) ** -power)


LEARNING_RATE: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine, "inverse": inverse}


def learning_rate(progress: float, schedule: str, warmup: float = 0.0) -> float:
    """Factor of the base learning rate: the named schedule, with a linear rise over the first `warmup` of p."""
    factor = LEARNING_RATE[schedule](progress)
    if warmup > 0.0 and progress < warmup:
        return factor * max(progress / warmup, 0.01)
    return factor
