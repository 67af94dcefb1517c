"""An epoch's scores of a network: label-free ones on the target, and accuracies where labels are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgeda.data import Domains, ImageSet, spread
from edgeda.distributed.batchnorm import alone
from edgeda.distributed.group import Group
from edgeda.inference import estimate_statistics, predict_logits
from edgeda.models import Network
from edgeda.runtime.preprocessing import Preprocessing
from edgeda.selection import accuracy, label_free_scores
from edgeda.watching import Record

SCORED_IMAGES = 512
"""Target images, spread over the domain, that label-free scores are computed on."""


def score(
    network: Network, data: Domains, preprocessing: Preprocessing, group: Group, target_statistics: bool
) -> Record | None:
    """`scores`, `source_accuracy` and `target_accuracy` of a network; None when its predictions are not finite.

    `target_statistics` leaves it with BatchNorm statistics estimated on the target. Every process does an equal part,
    and all return what the first makes of it.
    """
    scored = data.target.take(spread(len(data.target), SCORED_IMAGES))
    if target_statistics:
        with alone():  # every process by itself, over the same images
            estimate_statistics(network, scored.squares, preprocessing)
    logits = shared_logits(network, scored, preprocessing, group)
    if not torch.isfinite(logits).all():
        return None
    found = {
        "scores": label_free_scores(logits),
        "source_accuracy": _accuracy(network, data.source_test, preprocessing, group),
        "target_accuracy": _accuracy(network, data.target_test, preprocessing, group),
    }
    return group.decide(lambda: found)


def shared_logits(network: Network, images: ImageSet, preprocessing: Preprocessing, group: Group) -> Tensor:
    """Logits `(N, C)` on the CPU, of which every process computes an equal part."""
    if group.size == 1:
        return predict_logits(network, images.squares, preprocessing)
    share = -(-len(images) // group.size)
    # a few more at the end, so that parts are equal
    places = np.minimum(np.arange(group.rank * share, (group.rank + 1) * share), len(images) - 1)
    own = predict_logits(network, images.take(places).squares, preprocessing)
    return group.whole(own.to(next(network.parameters()).device)).cpu()[: len(images)]


def _accuracy(network: Network, images: ImageSet | None, preprocessing: Preprocessing, group: Group) -> float | None:
    if images is None or images.labels is None:
        return None
    return accuracy(shared_logits(network, images, preprocessing, group), torch.from_numpy(images.labels))
