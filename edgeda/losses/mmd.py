"""Maximum mean discrepancy with a sum of Gaussian kernels."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)


def squared_distances(points: Tensor) -> Tensor:
    """Squared Euclidean distances `(N, N)` of points `(N, D)` from their Gram matrix, exact zeros on the diagonal."""
    gram = points @ points.T
    norms = gram.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2.0 * gram).clamp_min(0.0)
    return distances * (1.0 - torch.eye(len(points), device=points.device, dtype=points.dtype))


def mmd(source_features: Tensor, target_features: Tensor) -> Tensor:
    """|| mean phi(source) - mean phi(target) ||^2 in the RKHS (KD-UDA eq. 1), biased estimate.

    Kernel: sum over m in {1/4, 1/2, 1, 2, 4} of exp(-||x - y||^2 / (m * w)), with w the mean squared
    distance over all ordered pairs of different points of both domains, detached. `(N, D)` and
    `(M, D)`; returns a scalar in [0, 10).
    """
    count = len(source_features)
    points = torch.cat([source_features, target_features]).float()
    distances = squared_distances(points)
    total = len(points)
    width = (distances.detach().sum() / (total * (total - 1))).clamp_min(1e-12)
    kernel = torch.stack([torch.exp(-distances / (multiplier * width)) for multiplier in MULTIPLIERS]).sum(0)
    within = kernel[:count, :count].mean() + kernel[count:, count:].mean()
    return within - 2.0 * kernel[:count, count:].mean()
