"""Alignments: what pulls the target towards the source. One file each, one line in ALIGNMENTS."""

from __future__ import annotations

from edgeda.alignments.afn import AfnAlignment, HardAfnAlignment
from edgeda.alignments.base import Alignment
from edgeda.alignments.bnm import BnmAlignment
from edgeda.alignments.bsp import BspAlignment
from edgeda.alignments.cdan import CdanAlignment, EntropyCdanAlignment
from edgeda.alignments.coral import CoralAlignment
from edgeda.alignments.dann import DannAlignment
from edgeda.alignments.jmmd import JmmdAlignment
from edgeda.alignments.lmmd import LmmdAlignment
from edgeda.alignments.mcc import MccAlignment
from edgeda.alignments.mcd import McdAlignment
from edgeda.alignments.mdd import MddAlignment
from edgeda.alignments.mmd import MmdAlignment
from edgeda.errors import InputError, WrongKey, did_you_mean

__all__ = ["ALIGNMENTS", "Alignment", "build_alignments", "check_names"]

ALIGNMENTS: dict[str, type[Alignment]] = {
    "mmd": MmdAlignment,
    "mcc": MccAlignment,
    "jmmd": JmmdAlignment,
    "lmmd": LmmdAlignment,
    "coral": CoralAlignment,
    "dann": DannAlignment,
    "cdan": CdanAlignment,
    "cdan+e": EntropyCdanAlignment,
    "mcd": McdAlignment,
    "mdd": MddAlignment,
    "afn": AfnAlignment,
    "afn-hard": HardAfnAlignment,
    "bnm": BnmAlignment,
    "bsp": BspAlignment,
}


def build_alignments(names: tuple[str, ...], features: int, classes: int) -> dict[str, Alignment]:
    """The named alignments for a network of `features` wide features; InputError for an unknown name.

    InputError too for a source with too few classes for one of them.
    """
    check_names(names)
    for name in names:
        if classes < (least := ALIGNMENTS[name].least_classes):
            raise InputError(f"alignment '{name}' compares classes: it needs {least} or more, the source has {classes}")
    return {name: ALIGNMENTS[name](features, classes) for name in names}


def check_names(names: tuple[str, ...]) -> None:
    """InputError for a name that is no alignment, for one that comes twice, or for none at all."""
    if not names:
        raise WrongKey("adapt.alignment", f"nothing is named; choose from: {', '.join(ALIGNMENTS)}")
    for name in names:
        if name not in ALIGNMENTS:
            raise InputError(f"unknown alignment '{name}'{did_you_mean(name, ALIGNMENTS)}")
        if names.count(name) > 1:
            raise WrongKey("adapt.alignment", f"'{name}' is named twice; raise adapt.weight to make it count more")
