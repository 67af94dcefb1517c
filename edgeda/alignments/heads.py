"""Networks that adversarial alignments train beside the adapted one, with the reference implementations' shapes."""

from __future__ import annotations

from torch import nn

WIDTH = 1024


def discriminator(width: int) -> nn.Sequential:
    """Two hidden layers of 1024 with BatchNorm and ReLU, one logit: `(B, width)` to `(B, 1)`.

    As in thuml's Transfer-Learning-Library, whose figures for DANN and CDAN are the usual anchors; the first code of
    CDAN has dropout 0.5 in place of BatchNorm. BatchNorm sees source and target together.
    """
    return nn.Sequential(
        nn.Linear(width, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, 1),
    )  # fmt: skip


def auxiliary_classifier(width: int, classes: int) -> nn.Sequential:
    """One hidden layer of 1024 with ReLU and dropout 0.5, `(B, width)` to `(B, classes)`, as in the code of MDD.

    Weights start from N(0, 0.01^2), biases from 0, as there.
    """
    layers = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Dropout(0.5), nn.Linear(WIDTH, classes))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return layers
