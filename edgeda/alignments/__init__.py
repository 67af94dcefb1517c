"""Alignments: what pulls the target towards the source. One file each, one line in ALIGNMENTS."""

from __future__ import annotations

from edgeda.alignments.base import Alignment
from edgeda.alignments.mcc import MccAlignment
from edgeda.alignments.mmd import MmdAlignment
from edgeda.errors import InputError, did_you_mean

__all__ = ["ALIGNMENTS", "Alignment", "build_alignments", "check_names"]

ALIGNMENTS: dict[str, type[Alignment]] = {
    "mmd": MmdAlignment,
    "mcc": MccAlignment,
}


def build_alignments(names: tuple[str, ...], features: int, classes: int) -> dict[str, Alignment]:
    """The named alignments for a network of `features` wide features; InputError for an unknown name."""
    check_names(names)
    return {name: ALIGNMENTS[name](features, classes) for name in names}


def check_names(names: tuple[str, ...]) -> None:
    """InputError for a name that is no alignment, or for none at all."""
    if not names:
        raise InputError(f"adapt.alignment is empty; choose from: {', '.join(ALIGNMENTS)}")
    for name in names:
        if name not in ALIGNMENTS:
            raise InputError(f"unknown alignment '{name}'{did_you_mean(name, ALIGNMENTS)}")
