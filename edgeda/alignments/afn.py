"""AFN: adaptive feature norm (Xu, Li, Yang, Lin, ICCV 2019), stepwise and hard.

stepwise: 0.05 * sum over domains of mean (||x|| - (||x|| detached + 1))^2
hard:     0.05 * sum over domains of (mean ||x|| - 25)^2
"""

from __future__ import annotations

from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.feature_norm import hard_feature_norm, stepwise_feature_norm
from edgeda.outputs import Output

WEIGHT = 0.05
RADIUS = 25.0
STEP = 1.0


class AfnAlignment(Alignment):
    """Longer features, step by step (SAFN 2019).

    Its value is always 0.1: only the gradient counts. The paper works on a layer of 1000 features with dropout before
    the head; here they are the network's features.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """0.05 * `losses.feature_norm.stepwise_feature_norm` of both domains."""
        return WEIGHT * (stepwise_feature_norm(source.features, STEP) + stepwise_feature_norm(target.features, STEP))


class HardAfnAlignment(Alignment):
    """Features of mean norm 25 (HAFN 2019).

    As `afn`, but every batch's mean norm is pulled to 25.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """0.05 * `losses.feature_norm.hard_feature_norm` of both domains."""
        return WEIGHT * (hard_feature_norm(source.features, RADIUS) + hard_feature_norm(target.features, RADIUS))
