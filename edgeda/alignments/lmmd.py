"""LMMD: deep subdomain adaptation network (DSAN; Zhu, Zhuang, Wang, Ke, Chen, Bian, Xiong, He, TNNLS 2020).

    mean over classes c of || sum_i w_i^c phi(source_i) - sum_j w_j^c phi(target_j) ||^2

with w^c each image's share of class c in its domain's batch: labels for the source, softmax outputs for the target.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.mmd import local_mmd
from edgeda.outputs import Output


class LmmdAlignment(Alignment):
    """MMD class by class (DSAN 2020).

    The mean is over the classes that are in both batches, as in the paper's code; its equation divides by all classes.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """`losses.mmd.local_mmd`; the target's outputs are weights and receive no gradient."""
        outputs = F.softmax(target.logits.float(), dim=1)
        return local_mmd(source.features, target.features, source_labels, outputs)
