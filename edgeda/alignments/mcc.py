"""MCC: minimum class confusion (Jin et al., ECCV 2020) of the target's predictions."""

from __future__ import annotations

from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.mcc import minimum_class_confusion
from edgeda.outputs import Output


class MccAlignment(Alignment):
    """Minimum class confusion of the target (2020).

    Off-diagonal class confusion at temperature 2.5.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """`losses.mcc.minimum_class_confusion` of the target logits."""
        return minimum_class_confusion(target.logits)
