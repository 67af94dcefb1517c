"""What summary.json and the lines of metrics.jsonl may hold: every key may be missing, none may be of another kind.

A run directory may come from somebody else, so it is checked here, where it is read, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(BaseModel):
    """Other keys are kept; numbers are not taken from texts."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class _OnTarget(_Record):
    last: Percent | None = None
    selected: Percent | None = None
    oracle: Percent | None = None


class _Accuracy(_Record):
    target: _OnTarget | None = None
    source: Percent | None = None


class _Complexity(_Record):
    gmacs: Cost | None = None
    gflops: Cost | None = None
    params_m: Cost | None = None


class _Selection(_Record):
    rule: str | None = None
    epoch: Count | None = None


class _Verdict(_Record):
    ship: str | None = None
    reason: str | None = None
    caveat: str | None = None
    evidence: dict[str, Any] | None = None


class _Gpu(_Record):
    name: str


class _Machine(_Record):
    cpu: str | None = None
    threads: Count | None = None
    memory_gb: Finite | None = None
    os: str | None = None
    python: str | None = None
    governor: str | None = None
    power_mode: str | int | None = None
    jetson: str | None = None
    jetson_state: dict[str, Any] | None = None
    gpus: list[_Gpu] | None = None


class _Summary(_Record):
    edgeda: str | None = None
    method: str | None = None
    alignment: list[str] | None = None
    teacher: str | None = None
    student: str | None = None
    source_only: str | None = None
    weights_from: dict[str, str] | None = None
    started_from: str | None = None
    source: str | None = None
    target: str | None = None
    target_test: str | None = None
    classes: list[str] | None = None
    images: dict[str, Count] | None = None
    skipped: dict[str, list[str]] | None = None
    seed: int | None = None
    epochs: int | None = None
    precision: str | None = None
    machine: _Machine | None = None
    wall_s: Cost | None = None
    pairs_per_s: Cost | None = None
    wait_share: Finite | None = None
    peak_memory_mb: Cost | None = None
    selection: _Selection | None = None
    accuracy: dict[str, _Accuracy | None] | None = None
    accuracy_source_images: str | None = None
    verdict: _Verdict | None = None
    complexity: dict[str, _Complexity | None] | None = None


class _Scores(_Record):
    role: str | None = None
    target_accuracy: Percent | None = None
    source_accuracy: Percent | None = None
    scores: dict[str, float | None] | None = None


class _Epoch(_Record):
    stage: str
    epoch: Count
    epochs: Count | None = None
    losses: dict[str, float]
    networks: dict[str, _Scores]


def check_summary(values: object) -> None:
    """ValueError, naming the key, unless `values` may be a summary.json."""
    _check(_Summary, values)


def check_epoch(values: object) -> None:
    """ValueError, naming the key, unless `values` may be a line of metrics.jsonl."""
    _check(_Epoch, values)


def _check(model: type[BaseModel], values: object) -> None:
    try:
        model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"])
        raise ValueError(f"{place}: {first['msg'].lower()}" if place else first["msg"].lower()) from error
