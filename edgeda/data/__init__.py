"""From a recipe to decoded domains, checked against each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from edgeda.data.cache import SquareCache
from edgeda.data.domains import Domain, Labels
from edgeda.data.images import ImageSet, decode, spread
from edgeda.data.opening import open_labelled, open_unlabelled
from edgeda.errors import InputError, some
from edgeda.recipe import DataRecipe
from edgeda.runtime.preprocessing import Preprocessing

__all__ = ["Domains", "ImageSet", "load_domains", "load_target", "load_test", "spread"]

log = logging.getLogger(__name__)

HOLDOUT_SEED = 0
JUDGED_IMAGES = 10_000
"""Of a domain that is decoded as it is used, images that source accuracy and the verdict are computed on at most."""


@dataclass(frozen=True)
class Domains:
    """Everything a run reads. `target` has no labels; `target_test` is for reporting only."""

    classes: tuple[str, ...]
    source: ImageSet
    source_test: ImageSet
    """Source images for reporting: held out, or training images."""
    held_out: bool
    """Whether no image of `source_test` is trained on."""
    target: ImageSet
    target_test: ImageSet | None

    @property
    def target_judged(self) -> ImageSet:
        """Target images that the finished networks are compared on."""
        return _judged(self.target)

    @property
    def skipped(self) -> dict[str, list[str]]:
        """What could not be read, by domain."""
        parts = {"source": self.source, "target": self.target, "target_test": self.target_test}
        return {name: list(part.skipped) for name, part in parts.items() if part is not None and part.skipped}


def load_domains(recipe: DataRecipe, cache: SquareCache | None = None) -> Domains:
    """Open, check and decode the domains of a recipe; InputError says which one is wrong and how.

    `cache` keeps what is decoded for other runs.
    """
    source_domain = open_labelled(recipe.source)
    _at_least_two(source_domain.classes, recipe.source)
    test_domain = open_labelled(recipe.target_test) if recipe.target_test else None
    classes = source_domain.classes or ()
    if test_domain is not None:
        test_domain.labels = match_classes(
            test_domain.labels, test_domain.classes, classes, recipe.target_test or "", recipe.source
        )
        test_domain.classes = classes
    target_domain = open_unlabelled(recipe.target, recipe.video)

    def read(domain: Domain, what: str) -> ImageSet:
        return decode(domain, recipe.preprocessing, what, cache=cache, ahead=recipe.decode_ahead)

    source = read(source_domain, "source")
    present = np.unique(source.labels) if source.labels is not None else np.empty(0)
    if len(present) < len(classes):
        gone = [name for index, name in enumerate(classes) if index not in present]
        raise InputError(f"no readable source image is left of class {', '.join(gone)} in {recipe.source}")
    target = read(target_domain, "target")
    test = read(test_domain, "target-test") if test_domain is not None else None
    training, reported = _hold_out(source, recipe.source_holdout)
    return Domains(classes, training, _judged(reported), reported is not training, target, test)


def load_target(recipe: DataRecipe, limit: int | None = None, warn: bool = True) -> ImageSet:
    """The unlabelled target alone, or `limit` images spread over it."""
    return decode(open_unlabelled(recipe.target, recipe.video), recipe.preprocessing, "target", limit, warn=warn)


def load_test(spec: str, classes: tuple[str, ...], preprocessing: Preprocessing, warn: bool = True) -> ImageSet:
    """Labelled images to evaluate a model of `classes` on."""
    domain = open_labelled(spec)
    domain.labels = match_classes(domain.labels, domain.classes, classes, spec, "the model")
    domain.classes = classes
    return decode(domain, preprocessing, "data", warn=warn)


def match_classes(
    labels: Labels | None, found: tuple[str, ...] | None, classes: tuple[str, ...], spec: str, reference: str
) -> Labels:
    """Labels renumbered to `classes` by name; InputError names the classes that `reference` does not have."""
    if labels is None or found is None:
        raise InputError(f"{spec} has no labels")
    strangers = [name for name in found if name not in classes]
    missing = [name for name in classes if name not in found]
    if strangers:
        lacking = f"; it lacks {some(missing)}" if missing else ""
        raise InputError(f"the classes of {spec} and {reference} differ: {spec} has {some(strangers)}{lacking}")
    if missing:
        log.warning("%s has no image of class %s: accuracy is over the other classes", spec, some(missing))
    index = np.asarray([classes.index(name) for name in found], np.int64)
    return index[labels]


def _at_least_two(classes: tuple[str, ...] | None, spec: str) -> None:
    found = classes or ()
    if len(found) < 2:
        has = f"only the class '{found[0]}'" if found else "no class"
        raise InputError(f"the source {spec} has {has}; it needs two or more class folders with images")


def _hold_out(source: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """Split off `fraction` of each class for reporting, never a class's only image."""
    if source.labels is None or fraction <= 0:
        return source, source
    random = np.random.default_rng(HOLDOUT_SEED)
    held: list[int] = []
    for label in np.unique(source.labels):
        members = random.permutation(np.flatnonzero(source.labels == label))
        held += members[: min(round(len(members) * fraction), len(members) - 1)].tolist()
    if not held:
        return source, source
    out = np.sort(np.asarray(held, np.int64))
    return source.take(np.setdiff1d(np.arange(len(source)), out)), source.take(out)


def _judged(images: ImageSet) -> ImageSet:
    return images if images.decoded else images.take(spread(len(images), JUDGED_IMAGES))
