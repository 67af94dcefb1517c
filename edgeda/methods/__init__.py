"""Methods: each a file with a class per algorithm and a `plan` of stages. One line in METHODS."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from edgeda.alignments import check_names
from edgeda.artifacts import RunDirectory
from edgeda.errors import InputError, did_you_mean
from edgeda.methods import adda, kd_uda, orders, source_only, tcp, uda
from edgeda.methods.base import Method, Stage, Workshop
from edgeda.methods.distillation import DISTILLATIONS
from edgeda.methods.readapt import continued
from edgeda.methods.uda import ADAPTERS
from edgeda.models import backbone_name
from edgeda.recipe import Recipe

__all__ = ["ALIASES", "METHODS", "Method", "Stage", "Workshop", "full_names", "method_name", "stages", "summary"]

METHODS: dict[str, Callable[[Recipe], list[Stage]]] = {
    "kd-uda": kd_uda.plan,
    "uda-then-kd": orders.plan_uda_then_kd,
    "kd-then-uda": orders.plan_kd_then_uda,
    "uda": uda.plan,
    "cckdn": uda.plan_cckdn,
    "adda": adda.plan,
    "tcp": tcp.plan,
    "source-only": source_only.plan,
}
ALIASES = {"ccmdn": "cckdn"}


def method_name(name: str) -> str:
    """The name in METHODS of a method or of its alias; InputError with the nearest known name otherwise."""
    found = ALIASES.get(name, name)
    if found not in METHODS:
        raise InputError(f"unknown method '{name}'{did_you_mean(name, [*METHODS, *ALIASES])}")
    return found


def full_names(recipe: Recipe) -> Recipe:
    """The recipe with the method and the backbones by their full names; InputError for one that is not known."""
    networks = {
        role: network.model_copy(update={"backbone": backbone_name(network.backbone)})
        for role, network in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    return recipe.model_copy(update={**networks, "method": method_name(recipe.method)})


def summary(name: str) -> str:
    """What a method does, in one line without a full stop."""
    return (inspect.getdoc(METHODS[name]) or "").partition("\n")[0].removesuffix(".")


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of a run, in order; one of them makes the source-only student it is compared with.

    A run that starts from another's networks is compared with that run's student instead. InputError for a name in the
    recipe that is not known, and for what its method cannot use.
    """
    for key, name, known in (
        ("adapt.technique", recipe.adapt.technique, ADAPTERS), ("distill.loss", recipe.distill.loss, DISTILLATIONS),
    ):  # fmt: skip
        if name not in known:
            raise InputError(f"unknown {key} '{name}'{did_you_mean(name, known)}")
    planned = [stage for stage in METHODS[method_name(recipe.method)](recipe) if stage.epochs or stage.scores]
    if recipe.start_from is not None:
        planned = continued(planned, RunDirectory(Path(recipe.start_from)))
    if any(stage.aligns for stage in planned):
        check_names(recipe.adapt.alignment)
    return planned
