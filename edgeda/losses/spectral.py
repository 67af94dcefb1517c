"""Losses of singular values: batch spectral penalization and batch nuclear-norm maximization."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.losses.float32 import without_autocast


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values `(min(N, D),)` of `(N, D)`, the largest first.

    NaN for a matrix that is not finite (LAPACK would raise), so that training sees a loss that is not finite.
    The gradient U V^T is finite for equal and for zero singular values.
    """
    if not torch.isfinite(matrix).all():
        return (matrix.sum() * math.nan).expand(min(matrix.shape))
    values: Tensor = torch.linalg.svdvals(matrix)
    return values


@without_autocast
def spectral_penalty(features: Tensor, count: int = 1) -> Tensor:
    """Sum of the squares of the `count` largest singular values of `(B, D)` (BSP, Chen et al., ICML 2019)."""
    return singular_values(features.float())[:count].square().sum()


@without_autocast
def batch_nuclear_norm(target_logits: Tensor) -> Tensor:
    """||P||_* / B, the sum of the singular values of the softmax outputs (BNM, Cui et al., CVPR 2020).

    To be maximized: it is largest for certain and diverse predictions. `(B, C)`; returns a scalar in
    (0, sqrt(min(B, C) / B)].
    """
    outputs = F.softmax(target_logits.float(), dim=1)
    return singular_values(outputs).sum() / len(outputs)
