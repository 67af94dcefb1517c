"""Correlation alignment: the distance of two covariances."""

from __future__ import annotations

from torch import Tensor

from edgeda.losses.float32 import without_autocast


def covariance(features: Tensor) -> Tensor:
    """Unbiased covariance `(D, D)` of at least two points `(N, D)`."""
    centred = features - features.mean(dim=0)
    return centred.T @ centred / (len(features) - 1)


@without_autocast
def coral(source_features: Tensor, target_features: Tensor) -> Tensor:
    """||C_source - C_target||_F^2 / (4 D^2) (Deep CORAL, Sun and Saenko, ECCV workshops 2016).

    C are unbiased covariances. `(N, D)` and `(M, D)` with N, M >= 2; returns a scalar.
    """
    difference = covariance(source_features.float()) - covariance(target_features.float())
    return difference.square().sum() / (4.0 * source_features.shape[1] ** 2)
