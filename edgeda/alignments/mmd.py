"""MMD: deep adaptation networks (Long et al., 2015) on the last features, as in KD-UDA eq. 1."""

from __future__ import annotations

from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.mmd import mmd
from edgeda.models import Output


class MmdAlignment(Alignment):
    """Squared maximum mean discrepancy of source and target features."""

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """`losses.mmd.mmd` of the features."""
        return mmd(source.features, target.features)
