"""What a model costs on this machine: arithmetic, size, latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeda.artifacts import RunDirectory, find_model
from edgeda.errors import EdgedaError, InputError, MissingExtra, did_you_mean, user_path
from edgeda.profiling.machine import compute_threads
from edgeda.profiling.subjects import (
    TORCH,
    Profile,
    Subject,
    backbone_subject,
    engines_for,
    file_subject,
    measure,
    weights_subject,
)

__all__ = ["ENGINES", "Profile", "exported_subjects", "profile_model"]

ENGINES = (TORCH, "onnxruntime", "openvino", "tensorrt")
_PATH_SUFFIXES = (".onnx", ".xml", ".engine", ".safetensors", ".pth", ".pt")


def profile_model(
    model: str | None,
    *,
    classes: int = 1000,
    input_size: int = 224,
    batch_sizes: Sequence[int] = (1,),
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    budget_s: float = 1.0,
) -> list[Profile]:
    """Complexity, size and latency of a model in every engine that is there, a row each.

    `model` is a run directory (its student in torch, then its exports), a .onnx file, an OpenVINO
    folder, a backbone name (random weights, in torch; only there do `classes` and `input_size` in
    pixels count), or None for the newest run. Each row is measured for `budget_s` seconds on
    `threads` threads (default: one per physical core).
    Engines not asked for by name may be missing: their row says which install brings them.
    Raises InputError for a request that makes no sense, MissingExtra for an engine that was asked
    for and is not installed, and the first failure when nothing at all could be measured.
    """
    _check(classes, input_size, batch_sizes, engines, threads)
    subjects = _subjects(model, engines, classes, input_size)
    rows: list[Profile] = []
    failures: list[EdgedaError] = []
    for subject in subjects:
        for row, error in measure(subject, batch_sizes, threads or compute_threads(), budget_s):
            if engines is not None and isinstance(error, MissingExtra):
                raise error
            rows.append(row)
            failures += [error] if error else []
    if len(failures) == len(rows):
        raise failures[0]
    return rows


def _check(
    classes: int, input_size: int, batch_sizes: Sequence[int], engines: Sequence[str] | None, threads: int | None
) -> None:
    if classes < 1 or input_size < 1 or (threads is not None and threads < 1):
        raise InputError(f"classes ({classes}), input size ({input_size}) and threads ({threads}) must be at least 1")
    if not batch_sizes or min(batch_sizes) < 1:
        raise InputError(f"batch sizes must be whole numbers from 1, for example 1,8; got {list(batch_sizes)}")
    if engines is not None and not engines:
        raise InputError(f"no engine to measure in; known: {', '.join(ENGINES)}")
    for engine in engines or ():
        if engine not in ENGINES:
            raise InputError(f"unknown engine '{engine}'{did_you_mean(engine, ENGINES)}")


def _subjects(model: str | None, engines: Sequence[str] | None, classes: int, input_size: int) -> list[Subject]:
    if model is not None and _is_name(model):
        possible = [_backbone(model, classes, input_size)]
    else:
        found = find_model(model)
        possible = _of_run(found) if isinstance(found, RunDirectory) else _of_file(found, found.name)
    chosen = [subject for subject in possible if engines is None or subject.engine in engines]
    if not chosen:
        usable = ", ".join(dict.fromkeys(subject.engine for subject in possible))
        raise InputError(f"{model or 'this model'} runs in {usable}, not in {', '.join(engines or ())}")
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
    return [weights_subject(f"{run.name}/student", run.weights()), *exported_subjects(run, f"{run.name}/")]


def exported_subjects(run: RunDirectory, prefix: str = "") -> list[Subject]:
    """What RUN/exports holds, .onnx files and OpenVINO models at any depth, in each engine that runs them."""
    folder = run.exports
    suffixes = ("*.onnx", "*.xml", "*.engine") if folder.is_dir() else ()
    paths = [path for suffix in suffixes for path in sorted(folder.rglob(suffix))]
    return [subject for path in paths for subject in _of_file(path, f"{prefix}{path.relative_to(folder)}")]
