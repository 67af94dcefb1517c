"""The real images an export is checked on: the run's own target, or a folder the user names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeda.artifacts import RECIPE, RunDirectory
from edgeda.data import ImageSet, load_target, load_test, spread
from edgeda.errors import EdgedaError, InputError
from edgeda.export.builder import Calibration, Teaching
from edgeda.models import load_network, read_card
from edgeda.recipe_file import load_recipe
from edgeda.runtime.preprocessing import Pixels

LIMIT, CALIBRATION_LIMIT, TEACHING_LIMIT = 512, 256, 4096


@dataclass(frozen=True)
class CheckImages:
    """Stored squares `(N, S, S, 3)`, where they come from in words (no paths), and labels when there are some."""

    squares: Pixels
    origin: str
    labels: NDArray[np.int64] | None
    gmacs: float | None


def parity_images(run: RunDirectory, images: str | None, role: str = "student") -> CheckImages:
    """Up to 512 images for the parity check of a run's export.

    Without `images`: the labelled target-test images of the run when it has some (so that accuracy can
    be stated), else its target. InputError says what to name when those can no longer be read.
    """
    summary = run.summary()
    costs = summary.get("complexity") or {}
    known = role if role in costs or role == "teacher" else "student"
    gmacs = (costs.get(known) or {}).get("gmacs")
    recipe = load_recipe(str(run.path / RECIPE))
    card = read_card(run.weights(role))
    data = recipe.data.model_copy(update={"target": images} if images else {})
    try:
        if images is None and data.target_test:
            test = load_test(data.target_test, card.classes, card.preprocessing)
            kept = test.take(spread(len(test), LIMIT))
            return CheckImages(kept.squares[:], f"target-test images ({test.name})", kept.labels, gmacs)
        target = load_target(data, LIMIT)
    except EdgedaError as error:
        if images is not None:
            raise
        raise InputError(f"the run's target images cannot be read ({error}); name a folder with --images") from error
    return CheckImages(target.squares[:], f"target images ({target.name})", None, gmacs)


def calibration_images(run: RunDirectory, images: str | None) -> Calibration:
    """Up to 256 unlabelled images that int8 is calibrated on: `images`, or the run's own target."""
    found = _target(run, images, CALIBRATION_LIMIT)
    return Calibration(found.squares[:], f"calibration images ({found.name})")


def teaching(run: RunDirectory, images: str | None, role: str, epochs: int) -> Teaching:
    """The run's teacher and up to 4096 unlabelled target images for quantization-aware distillation.

    InputError when the run has no teacher, or the teacher itself is exported.
    """
    if role == "teacher":
        raise InputError("--qat needs somebody to teach the network; the teacher has nobody: export the student")
    weights = run.weights("teacher")
    if not weights.is_file():
        raise InputError(f"--qat needs the teacher of the run, and {run.path} has none; leave --qat out")
    teacher, _ = load_network(weights)
    recipe = load_recipe(str(run.path / RECIPE))
    found = _target(run, images, TEACHING_LIMIT)
    return Teaching(teacher, found.squares[:], epochs, float(recipe.distill.tau), recipe.data.augment)


def _target(run: RunDirectory, images: str | None, limit: int) -> ImageSet:
    recipe = load_recipe(str(run.path / RECIPE))
    data = recipe.data.model_copy(update={"target": images} if images else {})
    try:
        return load_target(data, limit)
    except EdgedaError as error:
        if images is not None:
            raise
        raise InputError(
            f"the run's target images cannot be read ({error}); name a folder with --calibration"
        ) from error
