"""DANN: domain-adversarial training (Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky,
JMLR 2016).

    min over D, max over features of -1/2 (mean log D(source) + mean log(1 - D(target)))

in one step: the discriminator D sees features behind a gradient reversal of scale lambda = 2 / (1 + exp(-10 p)) - 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.alignments.heads import discriminator
from edgeda.losses.adversarial import domain_loss, reverse_gradient
from edgeda.outputs import Output
from edgeda.schedules import gamma


class DannAlignment(Alignment):
    """Domain discriminator, reversed (DANN 2016).

    lambda follows the stage's progress, as in the paper. The discriminator is `heads.discriminator`; it learns at full
    rate from the first step, while lambda is 0.
    """

    own_ramp: ClassVar[bool] = True

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.discriminator = discriminator(features)

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """The discriminator's cross-entropy."""
        features = torch.cat([source.features, target.features])
        logits = self.discriminator(reverse_gradient(features, gamma(progress))).squeeze(1)
        return domain_loss(logits[: len(source.features)], logits[len(source.features) :])
