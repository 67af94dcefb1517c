"""Correlation alignment: the distance of two covariances."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeda.losses.float32 import without_autocast


def covariance(features: Tensor) -> Tensor:
    """Unbiased covariance `(D, D)` of at least two points `(N, D)`."""
    centred = features - features.mean(dim=0)
    return centred.T @ centred / (len(features) - 1)


@without_autocast
def coral(source_features: Tensor, target_features: Tensor) -> Tensor:
    """||C_source - C_target||_F^2 / (4 D^2) (Deep CORAL, Sun and Saenko, ECCV workshops 2016).

    C are unbiased covariances. `(N, D)` and `(M, D)` with N, M >= 2; returns a scalar. With fewer images than
    features, by the Gram matrix `(N + M, N + M)` of the centred features instead of any `(D, D)`.
    """
    width = source_features.shape[1]
    if len(source_features) + len(target_features) >= width:
        difference = covariance(source_features.float()) - covariance(target_features.float())
        return difference.square().sum() / (4.0 * width**2)
    # float64: what is left is the small difference of large sums
    parts = [(part - part.mean(dim=0)) / (len(part) - 1) ** 0.5
             for part in (source_features.double(), target_features.double())]  # fmt: skip
    points = torch.cat(parts)
    signs = torch.cat([part.new_full((len(part),), sign) for part, sign in zip(parts, (1.0, -1.0), strict=True)])
    squares = (points @ points.T).square()
    return ((signs @ squares @ signs) / (4.0 * width**2)).float()
