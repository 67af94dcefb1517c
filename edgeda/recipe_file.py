"""Reading recipes: presets, YAML files and `key=value` pairs, validated once, with errors that name the nearest key."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from edgeda.errors import InputError, WrongKey, did_you_mean, one_line, user_path
from edgeda.recipe import Recipe
from edgeda.yaml_text import parse_yaml


def load_recipe(source: str | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A validated recipe from a preset name or a YAML file, with dotted `overrides` laid over it.

    Raises InputError naming the key, the value and the nearest known key.
    """
    values = {} if source is None else read_recipe(source)
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(error, source) from error
    section = recipe.benchmark
    for name, changes in (section.methods if section else {}).items():
        changed(recipe, changes, f"{source or ''} (benchmark method '{name}')".strip())
    for name, scenario in (section.scenarios if section else {}).items():
        changed(recipe, scenario.set, f"{source or ''} (benchmark scenario '{name}')".strip())
    return recipe


def load_benchmark(source: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """`load_recipe` of a recipe that must have a section `benchmark`."""
    if not read_recipe(source).get("benchmark"):
        raise InputError(f"the recipe '{source}' has no section 'benchmark' with scenarios and methods")
    return load_recipe(source, overrides)


def changed(recipe: Recipe, changes: Mapping[str, Any], where: str | None = None) -> Recipe:
    """The recipe with dotted keys changed, validated anew, and without its section `benchmark`.

    Raises InputError as `load_recipe`; `where` names the place of the changes in its message.
    """
    values = recipe.model_dump(mode="json")
    try:
        for key, value in changes.items():
            _set(values, key, value)
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(error, where) from error
    except InputError as error:
        raise InputError(f"recipe {where}: {error}" if where else str(error)) from error


def parse_set(pairs: Iterable[str]) -> dict[str, Any]:
    """`--set a.b=c` arguments as {"a.b": value}; the value is read as YAML."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key.strip()):
            raise InputError(f"--set {pair}: expected key=value, such as --set distill.tau=4")
        try:
            parsed[key.strip()] = parse_yaml(text) if text.strip() else None
        except ValueError as error:
            raise InputError(f"--set {pair}: the value is not YAML") from error
    return parsed


def preset_names() -> list[str]:
    """The recipes that come with edgeda."""
    return sorted(item.name.removesuffix(".yaml") for item in _preset_folder() if item.name.endswith(".yaml"))


def read_recipe(source: str) -> dict[str, Any]:
    """The mapping in a YAML file or preset, not validated."""
    path = user_path(source)
    if path.is_file():
        text, where = _read_text(path), str(path)
    elif source in preset_names():
        text, where = next(i for i in _preset_folder() if i.name == f"{source}.yaml").read_text("utf-8"), source
    else:
        raise InputError(f"no such recipe file or preset: {source}{did_you_mean(source, preset_names())}")
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"recipe {where} is not YAML: {one_line(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"recipe {where} must be a mapping of keys to values, not a {type(values).__name__}")
    return values


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"recipe {path} cannot be read as UTF-8 text: {error}") from error


def _preset_folder() -> list[Any]:
    """The recipes folder: package data in a wheel, the checkout's own folder otherwise."""
    packaged = resources.files("edgeda").joinpath("presets")
    if packaged.is_dir():
        return list(packaged.iterdir())
    checkout = Path(__file__).resolve().parent.parent / "recipes"
    return list(checkout.iterdir()) if checkout.is_dir() else []


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    at = values
    for depth, key in enumerate(parents):
        child = at.setdefault(key, {})
        if not isinstance(child, dict):
            raise InputError(f"{dotted}: '{'.'.join(parents[: depth + 1])}' is a value, not a group of keys")
        at = child
    at[last] = value


def _explained(error: ValidationError, source: str | None) -> InputError:
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    where = f"recipe {source}" if source else "recipe"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(location[:-1]), n=1, cutoff=0.5)
        hint = (
            f"; did you mean '{'.'.join([*location[:-1], near[0]])}'?"
            if near
            else (f"; known here: {', '.join(_keys_at(location[:-1]))}")
        )
        return InputError(f"{where}: unknown key '{dotted}'{hint}")
    if first["type"] == "missing":
        return InputError(f"{where}: '{dotted}' is missing")
    if first["type"] != "value_error":
        return WrongKey(dotted, f"{first['msg'].lower()} (got {reprlib.repr(first['input'])})", where)
    message = first["msg"].removeprefix("Value error, ")
    got = "" if location[0] == "benchmark" else f" (got {reprlib.repr(first['input'])})"
    return WrongKey(dotted, f"{message}{got}", where)


def _keys_at(location: list[str]) -> list[str]:
    """The keys known at a place in a recipe, as they are written there."""
    at: Any = Recipe
    for part in location:
        fields = at.model_fields if _is_model(at) else {}
        if fields:
            at = next((field.annotation for name, field in fields.items() if part in (name, field.alias)), None)
        else:  # a key of a mapping, or a number in a list
            at = next((kind for kind in get_args(at) if _is_model(kind)), None)
        at = next((kind for kind in get_args(at) if _is_model(kind) and type(None) in get_args(at)), at)
    return [field.alias or name for name, field in at.model_fields.items()] if _is_model(at) else []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def asked_recipe(recipe: str | None, overrides: dict[str, Any]) -> Recipe:
    """A recipe with changes; without one it is `digits` when no data is named and `default` otherwise. No torch."""
    own_data = "data.source" in overrides or "data.target" in overrides
    if own_data and recipe is None:
        for key, flag in (("data.source", "--source"), ("data.target", "--target")):
            if key not in overrides:
                raise InputError(f"{flag} is missing; give both --source and --target, or neither for built-in images")
    return load_recipe(("default" if own_data else "digits") if recipe is None else recipe, overrides)
