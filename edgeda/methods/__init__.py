"""Methods: each one file with a class per algorithm and a `plan` of stages. One line in METHODS."""

from __future__ import annotations

from collections.abc import Callable

from edgeda.alignments import check_names
from edgeda.errors import InputError, did_you_mean
from edgeda.methods import kd_uda, source_only
from edgeda.methods.base import Method, Stage, Workshop
from edgeda.recipe import Recipe

__all__ = ["METHODS", "Method", "Stage", "Workshop", "stages"]

METHODS: dict[str, Callable[[Recipe], list[Stage]]] = {
    "kd-uda": kd_uda.plan,
    "source-only": source_only.plan,
}


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of a run, in order; one of them trains the source-only student it is compared with."""
    if recipe.method not in METHODS:
        raise InputError(f"unknown method '{recipe.method}'{did_you_mean(recipe.method, METHODS)}")
    check_names(recipe.adapt.alignment)
    return METHODS[recipe.method](recipe)
