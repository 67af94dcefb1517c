"""How two classifiers disagree: the discrepancy of MCD and the margin disparity of MDD."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.losses.float32 import without_autocast


@without_autocast
def classifier_discrepancy(first_logits: Tensor, second_logits: Tensor) -> Tensor:
    """Mean |p_1 - p_2| over images and classes (MCD, Saito et al., CVPR 2018).

    p are softmax outputs. Both `(B, C)`; returns a scalar in [0, 2 / C].
    """
    first, second = F.softmax(first_logits.float(), dim=1), F.softmax(second_logits.float(), dim=1)
    return (first - second).abs().mean()


@without_autocast
def margin_disparity(
    source_logits: Tensor, source_auxiliary: Tensor, target_logits: Tensor, target_auxiliary: Tensor,
    margin: float = 4.0,
) -> Tensor:  # fmt: skip
    """mean over target log(1 - p'_k) + margin * mean over source log p'_k (MDD, Zhang et al., ICML 2019).

    p' are softmax outputs of the auxiliary classifier, k is the class that the main classifier predicts; the
    auxiliary classifier maximizes this, features minimize it. log(1 - p'_k) is taken from the logits of the other
    classes, so it and its gradient stay finite when p'_k is 1. All `(B, C)` with C >= 2; returns a scalar <= 0.
    """
    source = F.cross_entropy(source_auxiliary.float(), source_logits.argmax(dim=1))
    predicted = F.one_hot(target_logits.argmax(dim=1), target_logits.shape[1]).bool()
    auxiliary = target_auxiliary.float()
    others = auxiliary.masked_fill(predicted, -math.inf)
    target = (torch.logsumexp(others, dim=1) - torch.logsumexp(auxiliary, dim=1)).mean()
    return target - margin * source
