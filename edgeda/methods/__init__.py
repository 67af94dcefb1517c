"""Methods: each one file with a class per algorithm and a `plan` of stages. One line in METHODS."""

from __future__ import annotations

from collections.abc import Callable

from edgeda.errors import InputError, did_you_mean
from edgeda.methods import kd_uda, source_only
from edgeda.methods.base import Method, Stage, Workshop
from edgeda.methods.source_only import source_only_stage
from edgeda.recipe import Recipe

__all__ = ["METHODS", "Method", "Stage", "Workshop", "stages"]

METHODS: dict[str, Callable[[Recipe], list[Stage]]] = {
    "kd-uda": kd_uda.plan,
    "source-only": source_only.plan,
}


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of a run: the source-only student that everything is compared with, then the method's own."""
    if recipe.method not in METHODS:
        raise InputError(f"unknown method '{recipe.method}'{did_you_mean(recipe.method, METHODS)}")
    reference = source_only_stage("source_only", "source-only", recipe.train.epochs)
    return [reference, *METHODS[recipe.method](recipe)]
