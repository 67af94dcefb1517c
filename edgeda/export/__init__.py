"""Export a run's student, and prove on real images that the file says what the network says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import edgeda
from edgeda.artifacts import RunDirectory
from edgeda.errors import InputError, from_os_error, require
from edgeda.export.drift_reference import drift_reference
from edgeda.export.onnx import export_onnx, replacing
from edgeda.export.parity import Parity, accuracy, check_parity
from edgeda.models import load_network, parameters_m
from edgeda.runtime.backends import OnnxRuntimeBackend, read_manifest
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Pixels, network_input
from edgeda.torch_backend import TorchBackend

__all__ = ["PARITY_LIMIT", "export_run"]

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
) -> dict[str, Any]:
    """Export a run's network to `out`/ROLE.onnx with `manifest.json` beside it.

    `out` is RUN/exports for the student, RUN/exports/ROLE for the teacher and the source-only student.

    `images` are stored squares uint8 `(N, S, S, 3)` of real pictures, `images_from` says in words
    which; with `labels` `(N,)` the accuracy of network and file is recorded too. A few hundred are
    plenty. An earlier export of the same run is replaced; anything else in its place only with
    `overwrite`. Returns `path`, `manifest_path`, `manifest`, and `replaced`, all JSON values.

    Raises InputError when the run has no student, the images do not fit, the place is taken, or the
    file differs from the network by more than PARITY_LIMIT; nothing is left behind then.
    """
    network, card = load_network(run.weights(role))
    _check_images(images, labels, card.preprocessing.stored_size, len(card.classes))
    folder = out or (run.exports if role == "student" else run.exports / role)
    path, manifest_path = folder / f"{role}.onnx", folder / "manifest.json"
    replaced = path.exists()
    if not overwrite:
        _check_place(path, manifest_path, None if out is None else run.name)
    manifest = Manifest(
        classes=card.classes,
        preprocessing=card.preprocessing,
        architecture=card.architecture.backbone,
        precision="fp32",
        batch=(1, None),
        source_run=run.name,
        gmacs=gmacs,
        params_m=parameters_m(network),
        tools={
            "edgeda": edgeda.__version__,
            "torch": str(torch.__version__),
            "onnx": str(require("onnx", "train", "exporting to ONNX").__version__),
        },
    )
    backend, parts = TorchBackend(network, manifest, threads), np.array_split(images, -(-len(images) // 32))
    torch_logits = np.concatenate([backend(network_input(part, card.preprocessing)) for part in parts])
    manifest = replace(manifest, drift=drift_reference(images, torch_logits))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making the export folder") from error
    with replacing(manifest_path) as manifest_part, replacing(path) as part:
        manifest = export_onnx(network, manifest, part)
        inputs = network_input(images, card.preprocessing)
        parity = check_parity(TorchBackend(network, manifest, threads), OnnxRuntimeBackend(part, threads), inputs)
        _check_limit(parity)
        written = part.read_bytes()
        manifest = replace(
            manifest,
            sha256=hashlib.sha256(written).hexdigest(),
            size_mb=len(written) / 1e6,
            parity={**parity.to_dict(), "limit": PARITY_LIMIT, "images_from": images_from},
            accuracy=_accuracy(parity, labels, images_from),
        )
        manifest_part.write_text(json.dumps(manifest.to_dict(), indent=2) + "\n", encoding="utf-8")
    return {
        "path": str(path),
        "manifest_path": str(manifest_path),
        "manifest": json.loads(json.dumps(manifest.to_dict())),
        "replaced": replaced,
    }


def _check_images(images: Pixels, labels: NDArray[np.int64] | None, side: int, classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3) or len(images) == 0:
        raise InputError(f"expected images uint8 (N, {side}, {side}, 3), got {images.dtype} {images.shape}")
    if labels is None:
        return
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"expected {len(images)} whole-number labels, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels must be 0 to {classes - 1}, got {labels.min()} to {labels.max()}")


def _check_place(path: Path, manifest_path: Path, run_name: str | None) -> None:
    """InputError unless what lies there is an export of edgeda, and of this run where that is asked."""
    advice = "choose another --out, or pass --overwrite"
    readers: dict[Path, Callable[[Path], Manifest | None]] = {
        path: read_manifest,
        manifest_path: lambda beside: Manifest.from_json(beside.read_text(encoding="utf-8")),
    }
    for taken, read in readers.items():
        if not taken.exists():
            continue
        try:
            found = read(taken)
        except (InputError, OSError, ValueError):
            found = None
        if found is None:
            raise InputError(f"{taken} is not an edgeda export and is not overwritten; {advice}")
        if run_name is not None and found.source_run != run_name:
            raise InputError(f"{taken} is the export of another run, '{found.source_run}'; {advice}")


def _check_limit(parity: Parity) -> None:
    rounding = _ULPS * float(np.finfo(np.float32).eps * np.abs(parity.reference_logits).max())
    if parity.max_abs_error > max(PARITY_LIMIT, rounding):
        raise InputError(
            f"the exported model differs from the network by {parity.max_abs_error:.1e} in a logit (limit "
            f"{PARITY_LIMIT:.0e}, same class for {parity.agreement:.1f}% of images); nothing was written"
        )


def _accuracy(parity: Parity, labels: NDArray[np.int64] | None, images_from: str) -> dict[str, Any] | None:
    if labels is None:
        return None
    return {
        "torch": accuracy(parity.reference_logits, labels),
        "exported": accuracy(parity.candidate_logits, labels),
        "images": len(labels),
        "images_from": images_from,
    }
