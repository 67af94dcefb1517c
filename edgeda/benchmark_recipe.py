"""The section `benchmark` of a recipe: the scenarios, methods and published figures of one table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from edgeda.errors import did_you_mean

AVERAGE = "average"
"""Stands beside the scenarios in published values, and is no scenario's name."""
DECIDED = ("train.seed", "data.source", "data.target", "data.target_test")
"""Keys that --seeds and the scenarios decide."""

Percent = Annotated[float, Field(ge=0, le=100)]


class Strict(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _nothing_changes(value: object) -> object:
    """`KD-UDA:` without anything after it is the recipe itself."""
    return {} if value is None else value


Changes = Annotated[dict[str, Any], BeforeValidator(_nothing_changes)]


class Scenario(Strict):
    """One pair of domains; the first three keys are those of `data`."""

    source: str
    target: str
    target_test: str | None = None
    set: Changes = {}
    """Dotted recipe keys that differ in this scenario; a method's own go before them."""


class Published(Strict):
    """Target accuracies in percent that somebody printed, by method and scenario (or `average`)."""

    paper: str = Field(alias="from", min_length=1)
    """What to cite beside each number."""
    values: dict[str, dict[str, Percent]]


class BenchmarkRecipe(Strict):
    """Scenarios x methods, each with a name that is shown and that its folder is called after."""

    scenarios: dict[str, Scenario] = Field(min_length=1)
    methods: dict[str, Changes] = Field(min_length=1)
    """Dotted recipe keys that differ from the recipe, by the name of the method."""
    published: tuple[Published, ...] = ()

    @field_validator("scenarios", "methods")
    @classmethod
    def _folders_differ(cls, named: dict[str, Any]) -> dict[str, Any]:
        if AVERAGE in named:
            raise ValueError(f"'{AVERAGE}' cannot be a name: it is taken")
        check_folders_differ(named)
        return named

    @field_validator("methods")
    @classmethod
    def _method_keys(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, changes in methods.items():
            _check_keys(name, changes, "a method's")
        return methods

    @field_validator("scenarios")
    @classmethod
    def _scenario_keys(cls, scenarios: dict[str, Scenario]) -> dict[str, Scenario]:
        for name, scenario in scenarios.items():
            _check_keys(name, scenario.set, "a scenario's")
        return scenarios

    @model_validator(mode="after")
    def _published_names(self) -> BenchmarkRecipe:
        for table in self.published:
            for method, values in table.values.items():
                if method not in self.methods:
                    raise ValueError(f"published: unknown method '{method}'{did_you_mean(method, self.methods)}")
                for scenario in values:
                    if scenario not in self.scenarios and scenario != AVERAGE:
                        raise ValueError(
                            f"published: unknown scenario '{scenario}'{did_you_mean(scenario, self.scenarios)}"
                        )
        return self


def _check_keys(name: str, changes: dict[str, Any], whose: str) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            raise ValueError(f"{name}: write the keys of '{key}' dotted, such as adapt.alignment: [mcc]")
        if key in DECIDED or key.split(".")[0] == "benchmark":
            raise ValueError(f"{name}: '{key}' is not {whose} to change")


def check_folders_differ(names: Iterable[str]) -> None:
    """ValueError for a name that makes no folder's name, or the same as another one."""
    taken: dict[str, str] = {}
    for name in names:
        folder = folder_name(name).casefold()
        if not folder:
            raise ValueError(f"'{name}' cannot be a name: it needs letters or digits")
        if folder in taken:
            raise ValueError(f"'{taken[folder]}' and '{name}' would share the folder {folder}")
        taken[folder] = name


def folder_name(name: str) -> str:
    """A name as a folder's: `A->W` is `A-to-W`, and what is neither letter, digit nor one of `._+-` is a hyphen."""
    return re.sub(r"[^\w.+-]+", "-", name.replace("->", "-to-")).strip("-.")
