"""MCD: maximum classifier discrepancy (Saito, Watanabe, Ushiku, Harada, CVPR 2018).

    CE(C_1(source)) + CE(C_2(source)) - mean |p_1(target) - p_2(target)|

The two classifiers minimize this: right on the source, they disagree on targets far from it. Features minimize the
cross-entropies and, behind a gradient reversal, the disagreement.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from edgeda.alignments.base import Alignment
from edgeda.losses.adversarial import reverse_gradient
from edgeda.losses.disparity import classifier_discrepancy
from edgeda.outputs import Output
from edgeda.schedules import gamma


class McdAlignment(Alignment):
    """Two classifiers that disagree (MCD 2018).

    Departures from the paper: (1) one step with a gradient reversal, as the authors' own one-step code for
    segmentation, in place of steps A, B and four times C; (2) the two classifiers are the alignment's own, linear as
    the network's head, and the head, which is what ships, is a third that learns the source alone: as one of the pair
    it would have to climb the discrepancy while the features below it descend; (3) the reversal follows the schedule of
    DANN instead of being 1.
    """

    own_ramp: ClassVar[bool] = True
    least_classes: ClassVar[int] = 2

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.first, self.second = nn.Linear(features, classes), nn.Linear(features, classes)

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """Both cross-entropies on the source less the discrepancy on the target."""
        first = F.cross_entropy(self.first(source.features).float(), source_labels)
        second = F.cross_entropy(self.second(source.features).float(), source_labels)
        features = reverse_gradient(target.features, gamma(progress))
        return first + second - classifier_discrepancy(self.first(features), self.second(features))
