"""JSON from somebody else: finite numbers only, and one kind of error whatever is wrong with it."""

from __future__ import annotations

import json
import math
from typing import Any

MOST_CHARACTERS = 64 * 2**20
"""Longer texts are none of ours."""


def parse_json(text: str) -> Any:
    """The value in `text`; ValueError says in one short line why there is none.

    NaN, infinity and numbers that overflow to it are refused, and so is nesting that Python cannot follow.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text)} characters are too many")
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
