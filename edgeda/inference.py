"""Batched prediction with a torch network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgeda.data.augment import prepare
from edgeda.runtime.preprocessing import Pixels, Preprocessing

BATCH = 128


@torch.inference_mode()
def predict_logits(network: nn.Module, squares: Pixels, preprocessing: Preprocessing, batch: int = BATCH) -> Tensor:
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
    return torch.cat(parts).clone()
