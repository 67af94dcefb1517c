"""FLEET.yaml: one source, one recipe, many cameras."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from edgeda.benchmark_recipe import Changes, Strict, check_folders_differ, folder_name
from edgeda.errors import InputError, did_you_mean, one_line, user_path
from edgeda.prediction_sources import STREAM_PREFIXES
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.runtime.sources import shown_address
from edgeda.yaml_text import parse_yaml

DECIDED = ("data.source", "data.target", "data.target_test", "name")


class Camera(Strict):
    """Where a camera's images are."""

    target: str
    """A folder of any depth, an image list, a video file, a built-in name, or a stream; labels are never read."""
    target_test: str | None = None
    """Labelled images of this camera, for reporting only."""
    sample_minutes: Annotated[float, Field(gt=0, le=10_080)] | None = None
    """How long a stream (rtsp://..., or a local camera's index) is watched; a frame every `data.video.every_s`."""

    @model_validator(mode="after")
    def _sampled(self) -> Camera:
        if self.is_stream and self.sample_minutes is None:
            raise ValueError(f"the stream {self.shown} needs sample_minutes, how long it is watched")
        if self.sample_minutes is not None and not self.is_stream:
            raise ValueError(f"sample_minutes is for streams, and {self.target} is none; leave it out")
        return self

    @property
    def is_stream(self) -> bool:
        """Whether images come from a live source, which is sampled first."""
        return self.target.lower().startswith(STREAM_PREFIXES) or self.target.isdigit()

    @property
    def shown(self) -> str:
        """The target without what may be secret in an address."""
        return shown_address(self.target)


def _short(value: object) -> object:
    """`gate: gate.mp4` is `gate: {target: gate.mp4}`; a camera's index is a text."""
    values = value if isinstance(value, dict) else {"target": value}
    return {**values, "target": str(values["target"])} if type(values.get("target")) is int else values


class Group(Strict):
    """When one student serves several cameras."""

    distance: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Cameras look alike when no statistic of their images (light, contrast, detail) is further apart than this
    Kolmogorov-Smirnov distance."""
    cost: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Points that sharing may cost by difference of confidences; more, and the camera gets its own student."""


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
    group: Group | None = None
    """Let cameras that look alike share a student; null: each has its own."""
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    """Times that a camera whose process died is tried again."""

    @field_validator("cameras")
    @classmethod
    def _folders_differ(cls, cameras: dict[str, Camera]) -> dict[str, Camera]:
        check_folders_differ(cameras)
        return cameras

    @field_validator("set")
    @classmethod
    def _not_decided(cls, changes: dict[str, Any]) -> dict[str, Any]:
        for key in changes:
            if key in DECIDED:
                raise ValueError(f"'{key}' is decided by the fleet's own keys")
        return changes

    @cached_property
    def _base(self) -> Recipe:
        """What every camera's recipe is but for its target: read once, however many cameras there are."""
        found = {"data.source": absolute(self.source), "data.target": "", "data.target_test": None}
        return load_recipe(self.recipe, {**self.set, "name": folder_name(self.name), **found})

    def run_recipe(self, camera: Camera, frames: Path) -> Recipe:
        """The recipe of one camera's run; paths are made absolute, because workers have folders of their own.

        `frames` is the folder of what is sampled from a stream.
        """
        targets = {
            "target": str(frames) if camera.is_stream else absolute(camera.target),
            "target_test": None if camera.target_test is None else absolute(camera.target_test),
        }
        return self._base.model_copy(update={"data": self._base.data.model_copy(update=targets)})


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
        parts: dict[str, type[Strict]] = {"cameras": Camera, "group": Group}
        known = parts.get(location[0], FleetRecipe).model_fields
        return f"unknown key '{'.'.join(location)}'{did_you_mean(location[-1], known)}"
    if first["type"] == "missing":
        return f"'{'.'.join(location)}' is missing"
    return f"{'.'.join(location)}: {first['msg'].removeprefix('Value error, ')}"
