"""MMD: deep adaptation networks (Long et al., ICML 2015) on the last features, as in KD-UDA eq. 1."""

from __future__ import annotations

from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.mmd import mmd
from edgeda.outputs import Output


class MmdAlignment(Alignment):
    """Maximum mean discrepancy (DAN 2015)."""

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """`losses.mmd.mmd` of the features."""
        return mmd(source.features, target.features)
