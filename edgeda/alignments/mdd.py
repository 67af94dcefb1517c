"""MDD: margin disparity discrepancy (Zhang, Liu, Long, Jordan, ICML 2019).

    max over f', min over features of mean over target log(1 - p'_k) + 4 mean over source log p'_k

with p' the softmax outputs of an auxiliary classifier f' and k the class that the network's own head predicts.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.alignments.heads import auxiliary_classifier
from edgeda.losses.adversarial import reverse_gradient
from edgeda.losses.disparity import margin_disparity
from edgeda.outputs import Output
from edgeda.schedules import gamma

MARGIN = 4.0
REVERSAL = 0.1
"""Largest scale of the reversed gradient."""


class MddAlignment(Alignment):
    """Auxiliary classifier with a margin (MDD 2019).

    The reversal grows to 0.1, as in the paper's code, over the stage's progress (there: over some thousand steps). The
    auxiliary classifier is `heads.auxiliary_classifier`, that code's; the head beside it is the network's linear one.
    """

    own_ramp: ClassVar[bool] = True
    least_classes: ClassVar[int] = 2

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.auxiliary = auxiliary_classifier(features, classes)

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """-`losses.disparity.margin_disparity`, which the auxiliary classifier minimizes; the head gets no gradient."""
        features = torch.cat([source.features, target.features])
        auxiliary = self.auxiliary(reverse_gradient(features, REVERSAL * gamma(progress)))
        count = len(source.features)
        return -margin_disparity(source.logits, auxiliary[:count], target.logits, auxiliary[count:], MARGIN)
