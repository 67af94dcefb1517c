"""CORAL: correlation alignment for deep domain adaptation (Sun and Saenko, ECCV workshops 2016).

||C_source - C_target||_F^2 / (4 D^2), with unbiased covariances C of D features
"""

from __future__ import annotations

from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.errors import InputError
from edgeda.losses.coral import coral
from edgeda.outputs import Output


class CoralAlignment(Alignment):
    """Distance of covariances (Deep CORAL 2016).

    The paper takes the layer of the logits and tunes the weight until this loss is about as large as the cross-entropy;
    on hundreds of features, divided by 4 D^2, it is small: raise `adapt.weight`. It does not see a shift of the mean.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """`losses.coral.coral` of the features; InputError for a batch of one image."""
        if min(len(source.features), len(target.features)) < 2:
            raise InputError("alignment coral needs two or more images of each domain in a batch")
        return coral(source.features, target.features)
