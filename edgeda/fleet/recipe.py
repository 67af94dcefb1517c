"""FLEET.yaml: one source, one recipe, many cameras."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from edgeda.benchmark_recipe import Changes, Strict, folder_name
from edgeda.errors import InputError, did_you_mean, one_line, user_path
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.yaml_text import parse_yaml

DECIDED = ("data.source", "data.target", "data.target_test", "name")


class Camera(Strict):
    """Where a camera's images are."""

    target: str
    """A folder of any depth, an image list, a video file, or a built-in name; labels are never read."""
    target_test: str | None = None
    """Labelled images of this camera, for reporting only."""


def _short(value: object) -> object:
    """`gate: gate.mp4` is `gate: {target: gate.mp4}`."""
    return {"target": value} if isinstance(value, str) else value


class FleetRecipe(Strict):
    """What FLEET.yaml may say."""

    name: str = Field(default="fleet", min_length=1)
    recipe: str = "default"
    """A recipe file or preset."""
    set: Changes = Field(default_factory=dict)
    """Dotted recipe keys that differ from it."""
    source: str
    """Labelled images, as `edgeda adapt --source` takes them."""
    cameras: dict[str, Annotated[Camera, BeforeValidator(_short)]] = Field(min_length=1)
    export: bool = True
    """Whether each camera's shipped student is written as ONNX."""
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    """Times that a camera whose process died is tried again."""

    @field_validator("cameras")
    @classmethod
    def _folders_differ(cls, cameras: dict[str, Camera]) -> dict[str, Camera]:
        taken: dict[str, str] = {}
        for name in cameras:
            folder = folder_name(name).casefold()
            if not folder:
                raise ValueError(f"'{name}' cannot be a camera's name: it needs letters or digits")
            if folder in taken:
                raise ValueError(f"the cameras '{taken[folder]}' and '{name}' would share the folder {folder}")
            taken[folder] = name
        return cameras

    @field_validator("set")
    @classmethod
    def _not_decided(cls, changes: dict[str, Any]) -> dict[str, Any]:
        for key in changes:
            if key in DECIDED:
                raise ValueError(f"'{key}' is decided by the fleet's own keys")
        return changes

    def run_recipe(self, camera: Camera) -> Recipe:
        """The recipe of one camera's run; paths are made absolute, because workers have folders of their own."""
        data = {"source": self.source, **camera.model_dump(exclude_none=True)}
        found = {f"data.{key}": absolute(value) for key, value in data.items()}
        name = {"name": folder_name(self.name)}
        return load_recipe(self.recipe, {**self.set, **name, "data.target_test": None, **found})


def absolute(spec: str) -> str:
    """A path that exists here as an absolute one; built-in names and paths of other machines as they are."""
    path = user_path(spec)
    return str(path.absolute()) if path.exists() else spec


def load_fleet(source: str) -> FleetRecipe:
    """A validated FLEET.yaml; InputError names the key, and the nearest known one."""
    path = user_path(source)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such fleet file: {source}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"fleet {source} cannot be read as UTF-8 text: {error}") from error
    except ValueError as error:
        raise InputError(f"fleet {source} is not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"fleet {source} must be a mapping with source and cameras")
    try:
        return FleetRecipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"fleet {source}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = Camera.model_fields if location[0] == "cameras" else FleetRecipe.model_fields
        return f"unknown key '{'.'.join(location)}'{did_you_mean(location[-1], known)}"
    if first["type"] == "missing":
        return f"'{'.'.join(location)}' is missing"
    return f"{'.'.join(location)}: {first['msg'].removeprefix('Value error, ')}"
