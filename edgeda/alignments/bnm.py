"""BNM: batch nuclear-norm maximization (Cui, Wang, Zhuo, Li, Huang, Tian, CVPR 2020).

-||P||_* / B, with P the softmax outputs (B, C) of the target batch
"""

from __future__ import annotations

from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.spectral import batch_nuclear_norm
from edgeda.outputs import Output


class BnmAlignment(Alignment):
    """Nuclear norm of target predictions (BNM 2020).

    The sum of singular values over the batch size, as in the paper; its code divides by min(B, C), which is stronger
    when there are fewer classes than images in a batch.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """-`losses.spectral.batch_nuclear_norm` of the target logits."""
        return -batch_nuclear_norm(target.logits)
