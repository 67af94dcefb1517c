"""Export a run's student, and prove on real images that the file says what the network says."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import edgeda
from edgeda.artifacts import ROLES, RunDirectory
from edgeda.errors import InputError, from_os_error, require
from edgeda.export.budget import Reference
from edgeda.export.builder import LEAST_CALIBRATION, Builder, Built, Calibration, Options, Teaching
from edgeda.export.consumers import Request
from edgeda.export.drift_reference import drift_reference
from edgeda.export.onnx import replacing
from edgeda.export.parity import Parity, accuracy, logits_of
from edgeda.models import load_network, parameters_m
from edgeda.profiling.machine import compute_threads
from edgeda.runtime.backends import read_manifest
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Pixels, network_input
from edgeda.torch_backend import TorchBackend
from edgeda.whole_file import HeldFolder, make_folder, sync

__all__ = ["PARITY_LIMIT", "Calibration", "Options", "Request", "Teaching", "export_run"]

WORKBENCH = ".export-"
"""How the folder begins that files are made in before they go to their places."""
PARITY_LIMIT = 1e-4
"""Largest difference of any logit allowed between torch and the exported file."""
_ULPS = 32
"""... or this many float32 steps of the largest logit, where logits are so large that it is more."""


def export_run(
    run: RunDirectory,
    images: Pixels,
    *,
    images_from: str,
    role: str = "student",
    labels: NDArray[np.int64] | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    gmacs: float | None = None,
    threads: int | None = None,
    wanted: Sequence[Request] = (Request(),),
    calibration: Calibration | None = None,
    teaching: Teaching | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Export a run's network as each artifact `wanted`, a folder each with a `manifest.json`, and judge them all.

    The plain fp32 ONNX is `out`/ROLE.onnx; any other lies in `out`/LABEL/. `out` is RUN/exports for the student,
    RUN/exports/ROLE for the teacher and the source-only student.

    `images` are stored squares uint8 `(N, S, S, 3)` of real pictures, `images_from` says in words
    which; with `labels` `(N,)` accuracy is what an artifact may lose, else agreement with the fp32 network. A few
    hundred are plenty. int8 needs `calibration`, `teaching` makes it quantization-aware. An earlier export of the same
    run is replaced; anything else in its place only with `overwrite`. Returns `path`, `manifest_path`, `manifest` and
    `replaced` of the first artifact, all of them under `artifacts`, and `table`: JSON values.

    Raises InputError when the run has no such network, the images do not fit, a place is taken, the plain file differs
    from the network by more than PARITY_LIMIT, or an artifact loses more than it may; nothing is left behind then.
    """
    network, card = load_network(run.weights(role))
    _check_images(images, labels, card.preprocessing.stored_size, len(card.classes))
    if any(request.precision == "int8" for request in wanted):
        _check_calibration(calibration)
    folder = out or (run.exports if role == "student" else run.exports / role)
    places = {request: folder / request.label for request in wanted}
    replaced = {
        request: _check_place(request, place, role, overwrite, None if out is None else run.name)
        for request, place in places.items()
    }
    manifest = Manifest(
        classes=card.classes,
        preprocessing=card.preprocessing,
        architecture=card.architecture.backbone,
        precision="fp32",
        batch=(1, None),
        source_run=run.name,
        gmacs=gmacs,
        params_m=parameters_m(network),
        tools=_tools(),
    )
    torch_logits = logits_of(
        TorchBackend(network, manifest, threads), network_input(images, card.preprocessing), batch=7
    )
    manifest = replace(manifest, drift=drift_reference(images, torch_logits))
    reference = Reference(images, card.preprocessing, torch_logits, labels)
    threads = threads or compute_threads()  # as profile and compare: an engine by itself takes every core
    builder = Builder(network, manifest, reference, calibration, teaching, options or Options(), threads)
    try:
        make_folder(folder)
    except OSError as error:
        raise from_os_error(error, "making the export folder") from error
    try:
        with HeldFolder(folder, "exporting into"), _workbench(folder) as temporary:
            made = _build_all(builder, wanted, temporary, role)
            artifacts = [
                _place(request, built, places[request], images_from, made, reference) | {"replaced": replaced[request]}
                for request, built in made.items()
                if request in places
            ]
    except OSError as error:
        raise from_os_error(error, "writing the export") from error
    return {**artifacts[0], "artifacts": artifacts, "table": [built.row for built in made.values()]}


@contextlib.contextmanager
def _workbench(folder: Path) -> Iterator[Path]:
    """A temporary folder inside a held one, so that files move by renaming; what a killed export left there goes."""
    for left in folder.glob(f"{WORKBENCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in (*folder.glob("manifest.json.part"), *folder.glob("*/manifest.json.part")):
        left.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=WORKBENCH, dir=folder) as temporary:
        yield Path(temporary)


def _build_all(builder: Builder, wanted: Sequence[Request], temporary: Path, role: str) -> dict[Request, Built]:
    """The fp32 ONNX first, asked for or not: the others are measured beside it."""
    plain = Request()
    made: dict[Request, Built] = {}
    for number, request in enumerate(dict.fromkeys((plain, *wanted))):
        made[request] = builder.build(request, temporary / str(number), role)
        if (request.format, request.precision) == ("onnx", "fp32"):
            _check_limit(made[request].parity)
    return made


def _place(
    request: Request, built: Built, place: Path, images_from: str, made: Mapping[Request, Built], reference: Reference
) -> dict[str, Any]:
    """Complete the manifest and move the files to their place."""
    manifest = replace(
        built.manifest,
        parity={
            **built.parity.to_dict(),
            "limit": PARITY_LIMIT if (request.format, request.precision) == ("onnx", "fp32") else None,
            "images_from": images_from,
        },
        accuracy=_accuracy(built.parity, reference, images_from),
        checks=[one.row for one in made.values()],
    )
    make_folder(place)
    model = built.files[0]
    if len(built.files) > 1:  # never the one file of a new model with the other of an old one
        (place / model.name).unlink(missing_ok=True)
    with replacing(place / "manifest.json") as part:
        part.write_text(json.dumps(manifest.to_dict(), indent=2) + "\n", encoding="utf-8")
        for file in reversed(built.files):
            sync(file)
            file.replace(place / file.name)
    return {
        "path": str(place / built.files[0].name),
        "manifest_path": str(place / "manifest.json"),
        "manifest": json.loads(json.dumps(manifest.to_dict())),
    }


def _tools() -> dict[str, str]:
    """Versions of what makes the files."""
    return {
        "edgeda": edgeda.__version__,
        "torch": str(torch.__version__),
        "onnx": str(require("onnx", "train", "exporting to ONNX").__version__),
    }


def _check_calibration(calibration: Calibration | None) -> None:
    if calibration is None:
        raise InputError("int8 needs calibration images; name unlabelled target images with --calibration")
    if len(calibration.squares) < LEAST_CALIBRATION:
        raise InputError(
            f"{len(calibration.squares)} {calibration.origin} are too few to calibrate int8 on: at least "
            f"{LEAST_CALIBRATION} are wanted, some hundred are better; name more with --calibration"
        )


def _check_images(images: Pixels, labels: NDArray[np.int64] | None, side: int, classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3) or len(images) == 0:
        raise InputError(f"expected images uint8 (N, {side}, {side}, 3), got {images.dtype} {images.shape}")
    if labels is None:
        return
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"expected {len(images)} whole-number labels, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels must be 0 to {classes - 1}, got {labels.min()} to {labels.max()}")


def _check_place(request: Request, place: Path, role: str, overwrite: bool, run_name: str | None) -> bool:
    """Whether an artifact is there already; InputError unless edgeda exported it, from `run_name` where given."""
    advice = "choose another --out, or pass --overwrite"
    model = place / (f"{role}.xml" if request.format == "openvino" else f"{role}.onnx")
    readers: dict[Path, Callable[[Path], Manifest | None]] = {
        model: read_manifest,
        place / "manifest.json": lambda beside: Manifest.from_json(beside.read_text(encoding="utf-8")),
    }
    others = [place / f"{other}{model.suffix}" for other in ROLES if other != role]
    if not overwrite and (beside := next((path for path in others if path.exists()), None)):
        raise InputError(f"{beside} lies there, and a folder has one manifest.json; {advice}")
    for taken, read in readers.items():
        if overwrite or not taken.exists():
            continue
        try:
            found = read(taken)
        except (InputError, OSError, ValueError):
            found = None
        if found is None:
            raise InputError(f"{taken} is not an edgeda export and is not overwritten; {advice}")
        if run_name is not None and found.source_run != run_name:
            raise InputError(f"{taken} is the export of another run, '{found.source_run}'; {advice}")
    return model.exists()


def _check_limit(parity: Parity) -> None:
    rounding = _ULPS * float(np.finfo(np.float32).eps * np.abs(parity.reference_logits).max())
    if parity.max_abs_error > max(PARITY_LIMIT, rounding):
        raise InputError(
            f"the exported model differs from the network by {parity.max_abs_error:.1e} in a logit (limit "
            f"{PARITY_LIMIT:.0e}, same class for {parity.agreement:.1f}% of images); nothing was written"
        )


def _accuracy(parity: Parity, reference: Reference, images_from: str) -> dict[str, Any] | None:
    if reference.labels is None:
        return None
    return {
        "torch": accuracy(reference.logits, reference.labels),
        "exported": accuracy(parity.candidate_logits, reference.labels),
        "images": len(reference.labels),
        "images_from": images_from,
    }
