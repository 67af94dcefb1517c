"""Adaptive feature norm (Xu et al., ICCV 2019): features of both domains are pushed to a large norm."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeda.losses.float32 import without_autocast


def _norms(features: Tensor) -> Tensor:
    """Euclidean norms `(B,)`; the gradient at a feature of exactly zero, which has no direction, is 0."""
    norms: Tensor = torch.linalg.vector_norm(features.float(), dim=1)
    return norms


@without_autocast
def hard_feature_norm(features: Tensor, radius: float = 25.0) -> Tensor:
    """(mean ||x|| - radius)^2 (HAFN, Xu et al., ICCV 2019). `(B, D)`; returns a scalar."""
    return (_norms(features).mean() - radius).square()


@without_autocast
def stepwise_feature_norm(features: Tensor, step: float = 1.0) -> Tensor:
    """Mean of (||x|| - (||x|| detached + step))^2 (SAFN, Xu et al., ICCV 2019). `(B, D)`; returns a scalar.

    Its value is step^2 whatever the features are: only its gradient says anything, and lengthens each feature
    alike.
    """
    norms = _norms(features)
    return (norms - (norms.detach() + step)).square().mean()
