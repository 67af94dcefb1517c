"""JMMD: joint adaptation networks (Long, Zhu, Wang, Jordan, ICML 2017).

    || mean over source of phi_1(f) x phi_2(p) - mean over target of phi_1(f) x phi_2(p) ||^2

with features f, softmax outputs p, and the kernel of a pair of images the product of the two layers' kernels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.mmd import joint_mmd
from edgeda.outputs import Output

OUTPUT_WIDTH = 1.68
"""Of the one Gaussian on softmax outputs, as in the paper's code; features have five, as `mmd`."""


class JmmdAlignment(Alignment):
    """Joint MMD of features, predictions (JAN 2017).

    The estimate is biased, with the diagonal kept, as the house's MMD; the paper's code estimates in linear time.
    JAN-A, which learns a layer that maximizes the discrepancy, is not built.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """`losses.mmd.joint_mmd` of features and softmax outputs; both receive gradients."""
        layers = [(output.features, F.softmax(output.logits.float(), dim=1)) for output in (source, target)]
        return joint_mmd(layers[0], layers[1], (None, OUTPUT_WIDTH))
