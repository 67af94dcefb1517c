"""Does an exported model say the same as the network it came from?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError
from edgeda.runtime.backends import Backend
from edgeda.runtime.classifier import softmax
from edgeda.runtime.manifest import LOGITS, PROBABILITIES

Logits = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Parity:
    """How far a candidate's logits are from the reference's, over all images and batch sizes."""

    images: int
    max_abs_error: float
    mean_abs_error: float
    agreement: float
    """Percent of answers with the same likeliest class."""
    batches: tuple[int, ...]
    reference_logits: Logits = field(repr=False)
    """`(N, C)`."""
    candidate_logits: Logits = field(repr=False)
    """`(N, C)`, at the first batch size."""
    of: str = LOGITS
    """What the errors are differences of: `logits`, or `probabilities` where the model gives those."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the logits."""
        return {
            "images": self.images,
            "max_abs_error": self.max_abs_error,
            "mean_abs_error": self.mean_abs_error,
            "agreement": self.agreement,
            "batches": list(self.batches),
            "of": self.of,
        }


def compare(
    expected: Logits, candidate: Backend, inputs: NDArray[Any], batches: Sequence[int], name: str = "torch"
) -> Parity:
    """A backend at each batch size against logits `(N, C)` that `name` gave; `inputs` are in the backend's layout.

    Every batch is full: the last one is filled up with the first images, whose second answers are dropped. Raises
    InputError for outputs of another shape, or not finite.
    """
    answers = np.stack([logits_of(candidate, inputs, batch) for batch in batches])
    if answers.shape[1:] != expected.shape:
        raise InputError(
            f"{candidate.name} gives logits {answers.shape[1:]}, {name} gives {expected.shape}: "
            "these are not the same model"
        )
    of = candidate.manifest.output if candidate.manifest else LOGITS
    given, wanted = (softmax(answers.reshape(-1, answers.shape[2])).reshape(answers.shape), softmax(expected)) if (
        of == PROBABILITIES
    ) else (answers.astype(np.float64), expected.astype(np.float64))  # fmt: skip
    errors = np.abs(given - wanted)
    return Parity(
        images=len(inputs),
        max_abs_error=float(errors.max()),
        mean_abs_error=float(errors.mean()),
        agreement=100.0 * float((answers.argmax(2) == expected.argmax(1)).mean()),
        batches=tuple(batches),
        reference_logits=expected,
        candidate_logits=answers[0],
        of=of,
    )


def accuracy(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Percent of the logits `(N, C)` whose largest is at the label `(N,)`."""
    return 100.0 * float((logits.argmax(1) == labels).mean())


def logits_of(backend: Backend, inputs: NDArray[Any], batch: int) -> Logits:
    """Logits `(N, C)` of inputs `(N, ...)` in full batches of `batch`; InputError for values that are not finite."""
    wanted = np.arange(-(-len(inputs) // batch) * batch) % len(inputs)
    parts = [backend(inputs[wanted[start : start + batch]]) for start in range(0, len(wanted), batch)]
    logits = np.concatenate(parts)[: len(inputs)]
    if not np.isfinite(logits).all():
        wrong = int((~np.isfinite(logits)).any(axis=1).sum())
        raise InputError(f"{backend.name} gives values that are not finite for {wrong} of {len(inputs)} images")
    return logits
