"""What adversarial alignments are made of: reversed gradients, domain loss, multilinear maps, entropy weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.losses.float32 import without_autocast


def reverse_gradient(values: Tensor, scale: float) -> Tensor:
    """The same values; the gradient that comes back is multiplied by -scale (DANN, Ganin et al., JMLR 2016)."""
    fixed = values.detach()
    return fixed + scale * (fixed - values)


@without_autocast
def domain_loss(
    source_logits: Tensor, target_logits: Tensor, source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """-1/2 (mean log D(source) + mean log(1 - D(target))): binary cross-entropy, each domain counting half.

    D is the sigmoid of a discriminator's logits; the source is 1, the target 0. Means are weighted where weights
    are given. All `(N,)`; returns a scalar in nats, ln 2 for a discriminator that knows nothing.
    """
    source = _mean(F.softplus(-source_logits.float()), source_weights)
    target = _mean(F.softplus(target_logits.float()), target_weights)
    return 0.5 * (source + target)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (weights.float() * values).sum() / weights.float().sum()


@without_autocast
def entropy_weights(logits: Tensor) -> Tensor:
    """1 + exp(-H(softmax(logits))) (CDAN+E, Long et al., NeurIPS 2018), detached. `(B, C)` to `(B,)`."""
    outputs = F.softmax(logits.detach().float(), dim=1)
    return 1.0 + torch.exp(-torch.special.entr(outputs).sum(dim=1))


@without_autocast
def multilinear_map(features: Tensor, outputs: Tensor) -> Tensor:
    """The outer product of features and class outputs (CDAN, Long et al., NeurIPS 2018), class by class.

    `(B, D)` and `(B, C)` to `(B, C * D)`: entry c * D + d is outputs[c] * features[d].
    """
    return (outputs.float()[:, :, None] * features.float()[:, None, :]).flatten(1)


@without_autocast
def randomized_multilinear_map(
    features: Tensor, outputs: Tensor, feature_matrix: Tensor, output_matrix: Tensor
) -> Tensor:
    """(R_f f) * (R_g g) / sqrt(d), an unbiased stand-in for the outer product's inner products (CDAN).

    `(B, D)`, `(B, C)` and fixed random matrices `(D, d)` and `(C, d)` of independent entries with mean 0 and
    variance 1; returns `(B, d)`.
    """
    product = (features.float() @ feature_matrix) * (outputs.float() @ output_matrix)
    return product / math.sqrt(feature_matrix.shape[1])
