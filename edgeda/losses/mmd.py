"""Maximum mean discrepancy with a sum of Gaussian kernels, of one layer, of several, and by class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.losses.float32 import without_autocast

MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)


def squared_distances(points: Tensor) -> Tensor:
    """Squared Euclidean distances `(N, N)` of points `(N, D)` from their Gram matrix, exact zeros on the diagonal."""
    gram = points @ points.T
    norms = gram.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2.0 * gram).clamp_min(0.0)
    return distances * (1.0 - torch.eye(len(points), device=points.device, dtype=points.dtype))


def gaussian_kernel(points: Tensor, width: float | None = None) -> Tensor:
    """Kernel values `(N, N)` of points `(N, D)`.

    With a `width`: exp(-||x - y||^2 / width). Without: the sum over m in {1/4, 1/2, 1, 2, 4} of
    exp(-||x - y||^2 / (m * w)), with w the mean squared distance over all ordered pairs of different
    points, detached (at least 1e-12).
    """
    distances = squared_distances(points)
    if width is not None:
        return torch.exp(-distances / width)
    total = len(points)
    mean = (distances.detach().sum() / (total * (total - 1))).clamp_min(1e-12)
    return torch.stack([torch.exp(-distances / (multiplier * mean)) for multiplier in MULTIPLIERS]).sum(0)


def embedding_distance(kernel: Tensor, count: int) -> Tensor:
    """|| mean phi(source) - mean phi(target) ||^2, biased; the first `count` rows of `(N, N)` are the source."""
    within = kernel[:count, :count].mean() + kernel[count:, count:].mean()
    return within - 2.0 * kernel[:count, count:].mean()


@without_autocast
def mmd(source_features: Tensor, target_features: Tensor) -> Tensor:
    """|| mean phi(source) - mean phi(target) ||^2 in the RKHS (KD-UDA eq. 1), biased estimate.

    Kernel: `gaussian_kernel` of the points of both domains. `(N, D)` and `(M, D)`; returns a scalar in [0, 10).
    """
    points = torch.cat([source_features, target_features]).float()
    return embedding_distance(gaussian_kernel(points), len(source_features))


@without_autocast
def joint_mmd(
    source_layers: Sequence[Tensor], target_layers: Sequence[Tensor], widths: Sequence[float | None]
) -> Tensor:
    """|| C(source) - C(target) ||^2 of the joint embeddings of several layers (JAN, Long et al., ICML 2017).

    The kernel of two images is the product over layers of `gaussian_kernel` with that layer's width (None: five
    widths around the mean distance). Biased estimate, diagonal kept. Each layer `(N, D_l)` and `(M, D_l)`; returns
    a scalar. One layer of width None is `mmd`.
    """
    kernels = [
        gaussian_kernel(torch.cat([source, target]).float(), width)
        for source, target, width in zip(source_layers, target_layers, widths, strict=True)
    ]
    return embedding_distance(torch.stack(kernels).prod(0), len(source_layers[0]))


@without_autocast
def local_mmd(
    source_features: Tensor, target_features: Tensor, source_labels: Tensor, target_outputs: Tensor
) -> Tensor:
    """Mean over classes of || sum_i w_i^c phi(x_i) - sum_j w_j^c phi(x_j) ||^2 (DSAN, Zhu et al., TNNLS 2020).

    Weights of class c: y_ic / sum_i y_ic, with the one-hot labels of the source and the outputs of the target
    (detached). Counted are the classes that some source image has and some target image is predicted as; with none,
    the loss is 0. Kernel: `gaussian_kernel` of the points of both domains. Features `(N, D)` and `(M, D)`, labels
    int64 `(N,)`, outputs `(M, C)`, rows of which sum to 1; returns a scalar in [0, 10).
    """
    outputs = target_outputs.detach().float()
    classes = outputs.shape[1]
    labels = F.one_hot(source_labels, classes).float()
    counted = labels.any(dim=0) & F.one_hot(outputs.argmax(dim=1), classes).any(dim=0)
    source = labels / labels.sum(dim=0).clamp_min(1.0)
    target = outputs / outputs.sum(dim=0).clamp_min(1e-12)
    weights = torch.cat([source, -target]) * counted
    kernel = gaussian_kernel(torch.cat([source_features, target_features]).float())
    return (weights * (kernel @ weights)).sum() / counted.sum().clamp_min(1)
