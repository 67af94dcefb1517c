"""Choosing what to ship without target labels: scores of unlabelled target predictions, and a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.guessing import guessing

SND_TEMPERATURE = 0.05
SND_BLOCK = 2**24
"""Similarities that are held at a time: some rows of those of all images."""
SOURCE_TOLERANCE = 15.0
"""Points of source accuracy an adapted student may lose before the verdict turns against it."""
COLLAPSE = 0.6
"""Share of the source-only student's effective number of predicted classes that counts as collapse."""


def information_maximization(logits: Tensor) -> float:
    """H(mean p) - mean H(p) in nats, p = softmax(logits) over N images: the mutual information of image and class.

    Between 0 and log C for logits `(N, C)`; larger is better. Used as an unsupervised score by Shi and
    Sha (ICML 2012) and Musgrave et al. (2022).
    """
    probabilities = F.softmax(logits.double(), dim=1)
    marginal = torch.special.entr(probabilities.mean(dim=0)).sum()
    conditional = torch.special.entr(probabilities).sum(dim=1).mean()
    return float(marginal - conditional)


def soft_neighborhood_density(logits: Tensor, temperature: float = SND_TEMPERATURE) -> float:
    """Mean entropy of each image's similarity to the others (Saito et al., ICCV 2021), nats; larger is better.

    Similarities are inner products of the l2-normalized softmax outputs, softmax over the N - 1 others
    at `temperature`. Logits `(N, C)`, N at least 2. It cannot see collapse: predicting one class for
    everything scores highest.
    """
    outputs = F.normalize(F.softmax(logits.float(), dim=1), dim=1)
    count = len(outputs)
    rows, total = max(1, SND_BLOCK // count), 0.0
    for first in range(0, count, rows):
        similarity = outputs[first : first + rows] @ outputs.T / temperature
        similarity.diagonal(first).fill_(float("-inf"))
        total += float(torch.special.entr(F.softmax(similarity, dim=1)).sum(dtype=torch.float64))
    return total / count


def effective_classes(logits: Tensor) -> float:
    """exp of the entropy of the mean prediction: how many classes are predicted, between 1 and C."""
    marginal = F.softmax(logits.double(), dim=1).mean(dim=0)
    return float(torch.special.entr(marginal).sum().exp())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of logits `(N, C)` whose largest entry is at the label `(N,)`."""
    return float((logits.argmax(dim=1) == labels).double().mean() * 100.0)


def agreement(logits: Tensor, others: Tensor) -> float:
    """Percent of images on which two networks predict the same class; both `(N, C)`."""
    return float((logits.argmax(dim=1) == others.argmax(dim=1)).double().mean() * 100.0)


def label_free_scores(target_logits: Tensor) -> dict[str, float]:
    """The scores of every rule that needs no labels."""
    snd = soft_neighborhood_density(target_logits) if len(target_logits) > 1 else 0.0
    return {"im": information_maximization(target_logits), "snd": snd}


def is_better(rule: str, epoch: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether an epoch's record beats the best one so far under a rule; ties go to the later epoch."""
    if best is None or rule == "last":
        return True
    if rule == "oracle":
        return bool(epoch["target_accuracy"] >= best["target_accuracy"])
    return bool(epoch["scores"][rule] >= best["scores"][rule])


@dataclass(frozen=True)
class Verdict:
    """Ship the adapted student, or keep the source-only one: decided without target labels."""

    ship: str
    """`adapted` or `source-only`."""
    reason: str
    caveat: str | None
    """That the one to ship is close to guessing, and what says so; None when it is not."""
    evidence: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"ship": self.ship, "reason": self.reason, "caveat": self.caveat, "evidence": self.evidence}


def judge(
    adapted: Tensor,
    source_only: Tensor,
    teacher: Tensor | None,
    adapted_source_accuracy: float,
    source_only_source_accuracy: float,
    reference: str = "source-only",
) -> Verdict:
    """The verdict from target logits `(N, C)` of the adapted student, the source-only student and the teacher.

    The adapted student is kept unless its predictions collapse onto few classes, it forgets the source,
    or it knows less of the target (information maximization) than the source-only student. `reference` is what
    reasons call that one.
    """
    ours, theirs = label_free_scores(adapted), label_free_scores(source_only)
    spread, reference_spread = effective_classes(adapted), effective_classes(source_only)
    evidence: dict[str, Any] = {
        "images": len(adapted),
        "im": {"adapted": round(ours["im"], 4), "source_only": round(theirs["im"], 4)},
        "snd": {"adapted": round(ours["snd"], 4), "source_only": round(theirs["snd"], 4)},
        "effective_classes": {"adapted": round(spread, 2), "source_only": round(reference_spread, 2)},
        "source_accuracy": {
            "adapted": round(adapted_source_accuracy, 2),
            "source_only": round(source_only_source_accuracy, 2),
        },
        "predictions_changed": round(100.0 - agreement(adapted, source_only), 2),
        "teacher_agreement": None if teacher is None else round(agreement(adapted, teacher), 2),
    }
    classes = adapted.shape[1]
    compared = f"im {ours['im']:.3g} against {theirs['im']:.3g} of at most {math.log(classes):.3g}"
    ship, reason = "source-only", ""
    if spread < COLLAPSE * reference_spread:
        reason = f"the adapted student predicts only {spread:.1f} effective classes, {reference} {reference_spread:.1f}"
    elif adapted_source_accuracy < source_only_source_accuracy - SOURCE_TOLERANCE:
        reason = (
            f"the adapted student lost {source_only_source_accuracy - adapted_source_accuracy:.1f} points on the source"
        )
    elif ours["im"] <= theirs["im"]:
        reason = f"the adapted student's target predictions say no more than {reference}'s ({compared})"
    else:
        ship, reason = "adapted", f"its target predictions say more, and as diversely ({compared})"
    im, right = (
        (ours["im"], adapted_source_accuracy) if ship == "adapted" else (theirs["im"], source_only_source_accuracy)
    )
    return Verdict(ship, reason, guessing(classes, im, {"the source": right}), evidence)
