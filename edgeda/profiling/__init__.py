"""What a model costs on this machine or another: arithmetic, size, memory, latency, power. No torch of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeda.artifacts import ROLES, RunDirectory, find_model
from edgeda.errors import EdgedaError, InputError, MissingExtra, did_you_mean, user_path
from edgeda.profiling.machine import compute_threads
from edgeda.profiling.opening import (
    ENGINES,
    Subject,
    backbone_subject,
    engines_for,
    file_subject,
    not_run,
    weights_subject,
)
from edgeda.profiling.stages import image_for
from edgeda.profiling.subjects import Extras, Profile, measure

__all__ = [
    "ENGINES",
    "Extras",
    "Profile",
    "check_engines",
    "check_request",
    "exported_subjects",
    "find_subjects",
    "profile_model",
    "profile_subjects",
]

_PATH_SUFFIXES = (".onnx", ".xml", ".engine", ".safetensors", ".pth", ".pt")
_PLAIN = Extras()


def profile_model(
    model: str | None,
    *,
    classes: int = 1000,
    input_size: int = 224,
    batch_sizes: Sequence[int] = (1,),
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    budget_s: float = 1.0,
    extras: Extras = _PLAIN,
) -> list[Profile]:
    """Complexity, size and latency of a model in every engine that is there, a row each.

    `model` is a run directory (its student in torch, then its exports), a .onnx or .engine file, an OpenVINO
    folder, a backbone name (random weights, in torch; only there do `classes` and `input_size` in
    pixels count), or None for the newest run. Each row is measured for `budget_s` seconds on
    `threads` threads (default: one per physical core).
    Engines not asked for by name may be missing: their row says which install brings them.
    Raises InputError for a request that makes no sense, MissingExtra for an engine that was asked
    for and is not installed, and the first failure when nothing at all could be measured.
    """
    check_request(batch_sizes, threads, extras)
    subjects = find_subjects(model, engines, classes, input_size)
    return profile_subjects(subjects, batch_sizes, engines is not None, threads, budget_s, extras)


def profile_subjects(
    subjects: Sequence[Subject],
    batch_sizes: Sequence[int],
    asked: bool,
    threads: int | None = None,
    budget_s: float = 1.0,
    extras: Extras = _PLAIN,
) -> list[Profile]:
    """`profile_model` of what `find_subjects` found; `asked` says whether the engines were named by the user."""
    rows: list[Profile] = []
    failures: list[EdgedaError] = []
    for subject in subjects:
        for row, error in measure(subject, batch_sizes, threads or compute_threads(), budget_s, extras):
            if asked and isinstance(error, MissingExtra):
                raise error
            rows.append(row)
            failures += [error] if error else []
    if len(failures) == len(rows):
        raise failures[0]
    return rows


def check_request(batch_sizes: Sequence[int], threads: int | None, extras: Extras) -> None:
    """InputError unless these numbers make sense, and there is an image where one is needed."""
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise InputError(f"batch sizes must be whole numbers from 1, for example 1,8; got {list(batch_sizes)}")
    if not extras.streams or not 1 <= min(extras.streams) <= max(extras.streams) <= 64:
        raise InputError(f"streams must be whole numbers from 1 to 64, for example 1,2; got {list(extras.streams)}")
    if extras.end_to_end:
        image_for(extras.image)


def check_engines(engines: Sequence[str] | None) -> None:
    """InputError unless each is an engine that is known; None means all that are there."""
    if engines is not None and not engines:
        raise InputError(f"no engine to measure in; known: {', '.join(ENGINES)}")
    for engine in engines or ():
        if engine not in ENGINES:
            raise InputError(f"unknown engine '{engine}'{did_you_mean(engine, ENGINES)}")


def find_subjects(
    model: str | None, engines: Sequence[str] | None = None, classes: int = 1000, input_size: int = 224
) -> list[Subject]:
    """What a MODEL argument stands for, in each engine that runs it or is asked for; InputError as `profile_model`."""
    if classes < 1 or input_size < 1:
        raise InputError(f"classes ({classes}) and input size ({input_size}) must be at least 1")
    check_engines(engines)
    if model is not None and _is_name(model):
        possible = [_backbone(model, classes, input_size)]
    else:
        found = find_model(model)
        possible = _of_run(found) if isinstance(found, RunDirectory) else _of_file(found, found.name)
    chosen = [subject for subject in possible if engines is None or subject.engine in engines]
    if not chosen:
        raise not_run(model or "this model", [subject.engine for subject in possible], engines or ())
    return chosen


def _is_name(model: str) -> bool:
    """Whether `model` can only be meant as a backbone name."""
    path = user_path(model)
    return not path.exists() and len(path.parts) == 1 and path.suffix.lower() not in _PATH_SUFFIXES


def _backbone(name: str, classes: int, input_size: int) -> Subject:
    try:
        return backbone_subject(name, classes, input_size)
    except InputError as error:
        raise InputError(f"no such run or file, and {error}") from error


def _of_file(path: Path, label: str) -> list[Subject]:
    return [file_subject(label, path, engine) for engine in engines_for(path)]


def _of_run(run: RunDirectory) -> list[Subject]:
    """The student; of a run that has none yet, whatever networks are there. Then the exports."""
    roles = ["student"] if run.weights().is_file() else [role for role in ROLES if run.weights(role).is_file()]
    found = [weights_subject(f"{run.name}/{role}", run.weights(role)) for role in roles]
    found += exported_subjects(run, f"{run.name}/")
    if not found:
        raise InputError(
            f"the run {run.path} holds neither networks nor exports yet; finish it with: "
            f"edgeda adapt --out {run.path} --resume"
        )
    return found


def exported_subjects(run: RunDirectory, prefix: str = "") -> list[Subject]:
    """What RUN/exports holds, models of every format at any depth, in each engine that runs them."""
    return [
        subject
        for path in run.exported_models()
        for subject in _of_file(path, f"{prefix}{path.relative_to(run.exports)}")
    ]
