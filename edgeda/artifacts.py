"""What a MODEL argument means: a run directory, an exported file, or the newest run. No torch here."""

from __future__ import annotations

import hashlib
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeda.errors import InputError, from_os_error, one_line, user_path
from edgeda.runtime.runs import RECIPE as RECIPE
from edgeda.runtime.runs import SUMMARY as SUMMARY
from edgeda.runtime.runs import exported_models, is_run
from edgeda.runtime.strict_json import parse_json

log = logging.getLogger(__name__)

RUNS = Path("runs")
METRICS, CHECKPOINT = "metrics.jsonl", "checkpoint"
ROLES = ("student", "teacher", "source_only")


def sha256(path: Path) -> str:
    """A file's SHA-256: what it holds, whatever its name."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class RunDirectory:
    """The hand-over from training to everything after it."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name: what exports quote instead of a local path."""
        return self.path.resolve().name

    def weights(self, role: str = "student") -> Path:
        """Where the weights of `student`, `teacher` or `source_only` are."""
        return self.path / f"{role}.safetensors"

    @property
    def exports(self) -> Path:
        """Folder of exported models."""
        return self.path / "exports"

    def exported_models(self) -> list[Path]:
        """Every model in RUN/exports, of any format and at any depth; kits hold copies of these and are left out."""
        return exported_models(self.path)

    def summary(self) -> dict[str, Any]:
        """The parsed summary.json; InputError when the run is not finished, or its values are of the wrong kind."""
        path = self.path / SUMMARY
        if not path.is_file():
            hint = ""
            if (self.path / RECIPE).is_file():
                hint = f"; wait for it, or go on with: edgeda adapt --out {self.path} --resume"
            raise InputError(f"the run {self.path} has no {SUMMARY}: it has not finished{hint}")
        try:
            parsed: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise from_os_error(error, "reading the run's summary") from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {one_line(error)}") from error
        try:
            from edgeda.run_records import check_summary  # with pydantic, which profiling over ssh does without

            check_summary(parsed)
        except ValueError as error:
            raise InputError(f"{path} is not a run's summary: {one_line(error)}") from error
        return parsed


def newest_run(root: Path = RUNS) -> RunDirectory:
    """The run under `root` that finished last; it is named on the log."""
    run = _newest(root)
    if run is None:
        raise InputError(
            f"no MODEL given and no finished run under ./{root}; run `edgeda adapt` first, or name a model"
        )
    log.info("no MODEL given: taking the newest run, %s", run)
    return RunDirectory(run)


def _newest(root: Path) -> Path | None:
    finished = [path for path in root.glob(f"*/{SUMMARY}") if path.is_file()] if root.is_dir() else []
    return max(finished, key=lambda path: (path.stat().st_mtime, str(path))).parent if finished else None


def as_argument(run: str | Path) -> str:
    """A run after a command, as a shell takes it: nothing for the newest, which is meant where none is named."""
    newest = _newest(RUNS)
    if newest is not None and newest.resolve() == Path(run).resolve():
        return ""
    return f" {shlex.quote(str(run))}"


def export_command(run: RunDirectory) -> str:
    """What makes the ONNX file of a run's student."""
    return f"edgeda export{as_argument(run.path)}"


def find_model(model: str | None) -> RunDirectory | Path:
    """A run directory, or the path of an exported model file or OpenVINO folder."""
    if model is None:
        return newest_run()
    path = user_path(model)
    if path.is_dir():
        if is_run(path):
            return RunDirectory(path)
        if sorted(path.glob("*.xml")):
            return path
        raise InputError(
            f"{path} is a folder, but neither a run directory (no {RECIPE}) nor an OpenVINO model (no .xml)"
        )
    if path.is_file():
        if path.suffix.lower() in (".onnx", ".xml", ".engine"):
            return path
        raise InputError(
            f"{path} is not a model edgeda opens; give a run directory, a .onnx file, an .engine or an OpenVINO folder"
        )
    raise InputError(f"no such model: {model}")


def exported_file(found: RunDirectory | Path) -> Path:
    """The file of what `find_model` found; of a run, its exported student, or else its only exported model."""
    if not isinstance(found, RunDirectory):
        return found
    exported = found.exports / "student.onnx"
    if exported.is_file():
        return exported
    models = found.exported_models()
    if not models:
        raise InputError(f"the run {found.path} has no {exported.name} yet; make it with: {export_command(found)}")
    if len(models) > 1:
        named = ", ".join(shlex.quote(str(path)) for path in models)
        raise InputError(f"the run {found.path} has no {exported.relative_to(found.path)}; name one of: {named}")
    log.info("taking the only exported model of the run, %s", models[0])
    return models[0]


def find_run(model: str | None) -> RunDirectory:
    """A run directory; InputError for anything else."""
    found = find_model(model)
    if not isinstance(found, RunDirectory):
        raise InputError(f"{found} is an exported model; this command needs the run directory it came from")
    return found
