"""CDAN and CDAN+E: conditional adversarial domain adaptation (Long, Cao, Wang, Jordan, NeurIPS 2018).

    min over D, max over features of -1/2 (mean w log D(T(f, p)) over source + mean w log(1 - D(T(f, p))) over target)

with features f, softmax outputs p, and T their outer product, or (R_f f) * (R_p p) / sqrt(1024) with fixed Gaussian
matrices R where the outer product has more than 4096 entries. w is 1, or 1 + exp(-H(p)) for CDAN+E.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.alignments.heads import discriminator
from edgeda.losses.adversarial import (
    domain_loss,
    entropy_weights,
    multilinear_map,
    randomized_multilinear_map,
    reverse_gradient,
)
from edgeda.outputs import Output
from edgeda.schedules import gamma

LARGEST_PRODUCT = 4096
RANDOM_WIDTH = 1024


class CdanAlignment(Alignment):
    """Discriminator of features x predictions (2018).

    As in the paper's code, the outputs p are detached: the reversed gradient reaches features only. The reversal's
    schedule and the discriminator are DANN's.
    """

    own_ramp: ClassVar[bool] = True
    conditions_on_entropy: ClassVar[bool] = False

    feature_matrix: Tensor
    output_matrix: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.randomized = features * classes > LARGEST_PRODUCT
        if self.randomized:
            self.register_buffer("feature_matrix", torch.randn(features, RANDOM_WIDTH))
            self.register_buffer("output_matrix", torch.randn(classes, RANDOM_WIDTH))
        self.discriminator = discriminator(RANDOM_WIDTH if self.randomized else features * classes)

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """The discriminator's cross-entropy."""
        features = reverse_gradient(torch.cat([source.features, target.features]), gamma(progress))
        outputs = F.softmax(torch.cat([source.logits, target.logits]).detach().float(), dim=1)
        logits = self.discriminator(self.joined(features, outputs)).squeeze(1)
        count = len(source.features)
        if self.conditions_on_entropy:
            weights = entropy_weights(source.logits), entropy_weights(target.logits)
            return domain_loss(logits[:count], logits[count:], *weights)
        return domain_loss(logits[:count], logits[count:])

    def joined(self, features: Tensor, outputs: Tensor) -> Tensor:
        """T(f, p): `(B, D)` and `(B, C)` to `(B, C * D)` or `(B, 1024)`."""
        if self.randomized:
            return randomized_multilinear_map(features, outputs, self.feature_matrix, self.output_matrix)
        return multilinear_map(features, outputs)


class EntropyCdanAlignment(CdanAlignment):
    """CDAN, certain predictions weigh more (2018).

    Weights are detached and sum to 1 within each domain (the paper's code normalizes so too, but lets a reversed
    gradient through the entropy; later code by the same group detaches it).
    """

    conditions_on_entropy: ClassVar[bool] = True
