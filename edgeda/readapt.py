"""The recipe of `edgeda adapt --from RUN --target NEW`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeda.adapt import check, check_used
from edgeda.artifacts import RECIPE, RunDirectory
from edgeda.errors import InputError
from edgeda.methods import stages
from edgeda.methods.readapt import trained_roles
from edgeda.models import read_card
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe, parse_set


def readapt_recipe(run: RunDirectory, options: dict[str, Any], pairs: list[str], out: Path | None = None) -> Recipe:
    """The recipe that adapts the networks of a finished run to another target: the run's own, options, --set pairs.

    Warm-ups and pretrained weights are left out; so are the labelled images of the old target. A pruned student adapts
    by itself (method `uda`). InputError for a run that has not finished or lacks a network, for another backbone, and
    for an `out` that is the run itself.
    """
    run.summary()
    if out is not None and out.resolve() == run.path.resolve():
        raise InputError(f"--out {out} is the run that is adapted again; choose another folder")
    overrides = {**options, **parse_set(pairs)}
    if "data.target" not in overrides:
        raise InputError(f"--target is missing: the images that the networks of {run.path} are to adapt to")
    saved = load_recipe(str(run.path / RECIPE))
    start: dict[str, Any] = {
        "name": f"{saved.name.removesuffix('-again')}-again",
        "start_from": str(run.path),
        "train.warmup_epochs": 0,
        "teacher.pretrained": "none",
        "student.pretrained": "none",
        "data.target_test": None,
        "prune.run": None,
        "prune.role": "student",
    }
    if saved.method == "tcp":
        start["method"] = "uda"
    recipe = load_recipe(str(run.path / RECIPE), {**start, **overrides})
    check_used(recipe, overrides)
    _check_networks(run, check(recipe))
    return recipe


def _check_networks(run: RunDirectory, recipe: Recipe) -> None:
    """InputError unless the run has every network that the method trains, of the backbone that is asked for."""
    planned = stages(recipe)
    if not any(stage.adapts for stage in planned):
        raise InputError(f"method {recipe.method} does not adapt; add --method, such as --method uda")
    for role in trained_roles(planned):
        if not run.weights(role).is_file():
            raise InputError(
                f"the run {run.path} has no {role}, which method {recipe.method} trains; --method uda adapts a student "
                "by itself"
            )
        found = read_card(run.weights(role)).architecture.backbone
        wanted = recipe.teacher.backbone if role == "teacher" else recipe.student.backbone
        if found != wanted:
            raise InputError(
                f"the {role} of {run.path} is a {found}, not a {wanted}: --from goes on with the run's own networks; "
                f"leave --{role} out"
            )
