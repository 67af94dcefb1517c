"""Batched prediction with a torch network, and BatchNorm statistics estimated anew."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgeda.data.augment import prepare
from edgeda.data.squares import Squares
from edgeda.distributed.batchnorm import batchnorm_layers
from edgeda.runtime.preprocessing import Preprocessing

BATCH = 128


@torch.inference_mode()
def predict_logits(network: nn.Module, squares: Squares, preprocessing: Preprocessing, batch: int = BATCH) -> Tensor:
    """Logits float32 `(N, C)` on the CPU of stored squares `(N, S, S, 3)`, in eval mode; the mode is put back."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        parts = [
            network(prepare(torch.from_numpy(np.ascontiguousarray(squares[at : at + batch])).to(device), preprocessing))
            .logits.float()
            .cpu()
            for at in range(0, len(squares), batch)
        ]
    finally:
        network.train(was_training)
    return torch.cat(parts)


@torch.no_grad()
def estimate_statistics(network: nn.Module, squares: Squares, preprocessing: Preprocessing, batch: int = BATCH) -> None:
    """Replace BatchNorm running statistics by those of stored squares `(N, S, S, 3)` (AdaBN, Li et al., 2016).

    Averages over batches, each a spread of the whole domain, so that images sorted by camera or hour
    give the variance of all of them. No augmentation; weights, dropout and random numbers are not
    touched. Needs two images or more.
    """
    layers = [layer for layer in batchnorm_layers(network) if layer.track_running_stats]
    if not layers or len(squares) < 2:
        return
    device = next(network.parameters()).device
    was_training, momenta = network.training, [layer.momentum for layer in layers]
    network.eval()
    try:
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
        parts = max(1, len(squares) // batch)
        for part in range(parts):
            images = torch.from_numpy(np.ascontiguousarray(squares[part::parts])).to(device)
            network(prepare(images, preprocessing))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        network.train(was_training)
