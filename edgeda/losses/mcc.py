"""Minimum class confusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.losses.float32 import without_autocast


@without_autocast
def minimum_class_confusion(target_logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Mean off-diagonal mass of the normalized class confusion matrix (Jin et al., ECCV 2020, eqs. 2-6).

    With Y = softmax(logits / T) and weights w_i = B (1 + exp(-H(y_i))) / sum_j (1 + exp(-H(y_j))), the
    confusion C = Y^T diag(w) Y is normalized over its rows, and the loss is (sum C - trace C) / classes.
    `(B, C)`; returns a scalar in [0, 1).
    """
    outputs = F.softmax(target_logits.float() / temperature, dim=1)
    entropy = torch.special.entr(outputs).sum(dim=1)
    weights = 1.0 + torch.exp(-entropy.detach())
    weights = len(outputs) * weights / weights.sum()
    confusion = (outputs * weights[:, None]).T @ outputs
    confusion = confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return (confusion.sum() - confusion.trace()) / confusion.shape[0]
