"""`edgeda bundle`: an exported model as a kit that a video pipeline takes as it is."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgeda
from edgeda.artifacts import RunDirectory, exported_file, find_model
from edgeda.bundling.folder import check_place, write_folder
from edgeda.bundling.kits import KITS, Subject
from edgeda.errors import InputError, did_you_mean
from edgeda.report.summary import warn_against
from edgeda.runtime.backends import read_manifest
from edgeda.runtime.manifest import Manifest

log = logging.getLogger(__name__)

__all__ = ["KITS", "Bundle", "bundle"]


@dataclass(frozen=True)
class Bundle:
    """A kit that was written."""

    path: Path
    kit: str
    name: str
    files: tuple[str, ...]
    notes: tuple[str, ...]
    """What this consumer does otherwise than training did, in words."""
    parity: dict[str, Any] | None
    """How far the bundled graph is from the plain file; None where the file goes in as it is."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "path": str(self.path), "kit": self.kit, "name": self.name, "files": list(self.files),
            "notes": list(self.notes), "parity": self.parity,
        }  # fmt: skip


def bundle(
    model: str | None, kit: str, out: Path | None = None, name: str | None = None, overwrite: bool = False
) -> Bundle:
    """Write the kit of that name for an exported model (or a run's exported student) to the folder `out`.

    `out` is `<kit>-kit` beside the model by default. Everything is made before anything is written. Raises InputError
    for a model that does not say what it is, and for an `out` that holds something else.
    """
    if kit not in KITS:
        raise InputError(f"no kit '{kit}'{did_you_mean(kit, KITS)}")
    path = _model_file(model)
    manifest = _manifest(path)
    folder = out or (path if path.is_dir() else path.parent) / f"{kit}-kit"
    check_place(folder, overwrite)
    subject = Subject(path, manifest, _name(name, manifest, path))
    made = KITS[kit](subject)
    about = {
        "edgeda": edgeda.__version__, "kit": kit, "name": subject.name, "source_run": manifest.source_run,
        "model_sha256": hashlib.sha256(subject.content).hexdigest(), "parity": made.parity, "notes": list(made.notes),
    }  # fmt: skip
    write_folder(folder, made.files, about)
    for note in made.notes:
        log.warning("%s", note)
    return Bundle(folder, kit, subject.name, tuple(sorted(made.files)), made.notes, made.parity)


def _model_file(model: str | None) -> Path:
    """The exported file that a MODEL argument means."""
    found = find_model(model)
    if isinstance(found, RunDirectory):
        warn_against(found)
    path = exported_file(found)
    if path.suffix.lower() == ".engine":
        raise InputError(f"{path} runs on the device that built it only; bundle the .onnx file it was built from")
    return path


def _manifest(path: Path) -> Manifest:
    """The manifest of an exported model; InputError naming what is missing."""
    if path.is_dir():
        irs = sorted(path.glob("*.xml"))
        if len(irs) != 1:
            raise InputError(f"{path} holds {len(irs)} OpenVINO models (.xml), expected one; name the file itself")
        path = irs[0]
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(
            f"{path} carries no edgeda manifest: class names, input size, geometry, mean and standard deviation are "
            "missing; export it with: edgeda export"
        )
    if not manifest.classes:
        raise InputError(f"the manifest of {path} names no classes; export it again")
    return manifest


def _name(name: str | None, manifest: Manifest, path: Path) -> str:
    """What the model is called in configuration files and folders: letters, digits, `-` and `_`."""
    if name is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            raise InputError(f"--name {name}: use at most 64 letters, digits, - and _, such as --name gate-camera")
        return name
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", manifest.source_run or path.stem)[:64].strip("-_")
    return slug or "edgeda-student"
